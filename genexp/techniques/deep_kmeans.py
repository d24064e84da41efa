"""Deep k-means: an autoencoder whose codes cluster around learned centers (Fard et al. 2020; Xie et al. 2016)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.capabilities import CanCluster
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.device import promote_to_float32
from genexp.errors import ConfigError
from genexp.images.grid import make_grid
from genexp.images.scatter import draw_clusters, embed_tsne
from genexp.images.transforms import erase_bands, random_affine
from genexp.kmeans.distances import CenterDistances, nearest_center
from genexp.kmeans.init import kmeans_plusplus
from genexp.kmeans.lloyd import fit
from genexp.losses import LOSSES, register_loss
from genexp.metrics.clustering import CLUSTERING_SCORES, clustering_scores
from genexp.metrics.reconstruction import mse
from genexp.metrics.scores import mean_scores
from genexp.sharding import batch_mean, gather_rows, local_rows
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    ClosedFormPhase,
    GradientPhase,
    Metrics,
    Phase,
    PictureLabels,
    TechniquePart,
    detach_metrics,
    register_technique,
)
from genexp.techniques._autoencoder import Autoencoder, ConvAutoencoderConfig, build_conv_autoencoder
from genexp.techniques._neighbor_classifier import NeighborClassifier, find_neighbors, propagate

CLUSTERING_LOSSES = LOSSES["clustering"]
MAX_LLOYD_ITERATIONS = 100  # of the k-means fit after pretraining
SHARES_MOMENTUM = 0.01  # weight of a batch in the moving average of the cluster shares
CONTRAST_TEMPERATURE = 0.3
MAX_PREVIEW_IMAGES = 25  # held-out images beside their reconstructions
MAX_FIT_SAMPLES = 20_000  # size of the random subset that a fit of the neighbor classifier uses
VIEW_BATCH_SIZE = 500  # images whose views are encoded at once
FIT_VIEWS = 4  # random views of each image in that fit, with model.erase
PREVIEW_COLUMNS = 10  # of image grids; even, because pairs fill them


def soft_assignment(codes: Tensor, centers: Tensor) -> Tensor:
    """Return soft assignments (batch, clusters) by Student's t kernel (Xie et al. 2016, eq. 1).

    `codes` is (batch, latent), `centers` (clusters, latent). Rows sum to 1.
    """
    kernel = 1 / (1 + (codes.unsqueeze(1) - centers).square().sum(2))
    return kernel / kernel.sum(1, keepdim=True)


@register_loss("hard", kind="clustering")
def hard_assignment_loss(codes: Tensor, centers: Tensor, eval_codes: Tensor, shares: Tensor) -> Tensor:
    """Return the mean squared error between `codes` and the centers nearest to `eval_codes`.

    Both are (batch, latent): codes in training mode and in evaluation mode. `centers` is (clusters, latent).
    `shares` is not used.
    """
    return F.mse_loss(codes, centers[nearest_center(eval_codes, centers)])


@register_loss("sharpened", kind="clustering")
def sharpened_assignment_loss(codes: Tensor, centers: Tensor, eval_codes: Tensor, shares: Tensor) -> Tensor:
    """Return KL(target ‖ soft assignments of `codes`), mean over the batch (Xie et al. 2016, eq. 2 and 3).

    The target consists of the squared soft assignments of `eval_codes`, divided by `shares` and normalized.
    `shares` (clusters,) are the fractions of all images in each cluster. The square gives confident assignments a
    larger weight. The division prevents large clusters from absorbing small ones. `codes` and `eval_codes` are
    (batch, latent), `centers` (clusters, latent).
    """
    with torch.no_grad():
        weights = soft_assignment(eval_codes, centers).square() / shares
        target = weights / weights.sum(1, keepdim=True)
    return assignment_divergence(target, codes, centers)


def assignment_divergence(target: Tensor, codes: Tensor, centers: Tensor) -> Tensor:
    """Return KL(target ‖ soft assignments of `codes`), mean over the batch: a scalar.

    `target` is (batch, clusters), `codes` (batch, latent), `centers` (clusters, latent).
    """
    return F.kl_div(soft_assignment(codes, centers).log(), target, reduction="batchmean")


def contrastive_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the NT-Xent loss of two views of each image (SimCLR, Chen et al. 2020), for codes (batch, latent).

    `first` and `second` are the codes of the two views. The loss is low if the cosine similarity of a code is
    higher to the other view of its image than to all other codes of the batch. The result is a scalar.
    """
    num_images = len(gather_rows(first))
    keys = F.normalize(torch.cat([gather_rows(first), gather_rows(second)]), dim=1)
    similarity = F.normalize(torch.cat([first, second]), dim=1) @ keys.T / CONTRAST_TEMPERATURE
    rows = local_rows(torch.arange(num_images, device=first.device))
    own = torch.cat([rows, rows + num_images]).unsqueeze(1)
    other_view = torch.cat([rows + num_images, rows])
    return F.cross_entropy(similarity.scatter(1, own, -torch.inf), other_view)


NEIGHBORS = "neighbors"  # value of `pull`: the assignments come from a classifier, not from a loss of a registry


@dataclass
class DeepKMeansConfig(ConvAutoencoderConfig):
    """Keys of conf/model/deep_kmeans.yaml."""

    clusters: int
    latent_norm: bool  # normalize each latent unit to mean 0 and variance 1
    contrast: float  # weight of the contrastive loss of two augmented views, before the clustering loss starts
    pull: str  # clustering loss: name in CLUSTERING_LOSSES, or NEIGHBORS
    pull_options: dict[str, Any]  # keyword parameters of that loss
    neighbors: int  # nearest neighbors of an image that pull=neighbors puts in the same cluster
    fits: int  # number of fits of the classifier of pull=neighbors, at equal distances after pretraining
    propagate: bool  # pull=neighbors: clusters spread to neighbors, and later fits start from the current clusters
    alpha: float  # weight of the clustering loss at the end of its ramp
    alpha_ramp: list[int]  # [first, last] epoch of the linear ramp of that weight
    pretrain: float  # fraction of the run, in [0, 1), without the clustering loss
    n_init: int  # number of starts of the clustering that sets the centers after pretraining
    degrees: float  # augmentation: largest rotation
    pixels: float  # augmentation: largest shift
    zoom: float  # augmentation: largest relative change of size, in [0, 1)
    shear: float  # augmentation: largest shift of a row, divided by its distance from the center row
    erase: float  # augmentation in pretraining and fits: probability, in [0, 1], of an erased horizontal band

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clusters > 0, "clusters", self.clusters, "must be at least 1")
        require(self.n_init > 0, "n_init", self.n_init, "must be at least 1")
        require(self.neighbors > 0, "neighbors", self.neighbors, "must be at least 1")
        require(self.fits > 0, "fits", self.fits, "must be at least 1")
        if self.pull != NEIGHBORS:
            CLUSTERING_LOSSES.check("pull", self.pull, self.pull_options)
        is_ramp = len(self.alpha_ramp) == 2 and 0 <= self.alpha_ramp[0] <= self.alpha_ramp[1]
        require(is_ramp, "alpha_ramp", self.alpha_ramp, "must be two epochs in ascending order")
        require(0 <= self.pretrain < 1, "pretrain", self.pretrain, "must be a fraction of the run in [0, 1)")
        is_fitted = self.pull != NEIGHBORS or self.pretrain > 0
        require(is_fitted, "pretrain", self.pretrain, "must be positive for pull=neighbors, for example 0.6")
        require(0 <= self.zoom < 1, "zoom", self.zoom, "must be a fraction of the size in [0, 1)")
        require(0 <= self.erase <= 1, "erase", self.erase, "must be a probability in [0, 1]")
        for key in ("alpha", "contrast", "degrees", "pixels", "shear"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must be 0 or more")


@register_technique("deep_kmeans")
class DeepKMeans(Autoencoder, CanCluster):
    """Autoencoder with a clustering loss that moves latent codes toward centers."""

    Config = DeepKMeansConfig
    num_examples = 1000  # for the t-SNE of latent codes; a preview uses `MAX_PREVIEW_IMAGES` of them
    config: DeepKMeansConfig

    def __init__(self, config: DeepKMeansConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if config.clusters > spec.train_size:
            raise ConfigError(
                f"model.clusters={config.clusters}: exceeds the {spec.train_size} training images. "
                f"Use a smaller value, or a larger data set."
            )
        if config.latent_norm:
            # Without normalization, the clustering loss is smallest if all latent codes collapse to one point.
            layers = self.encoder if isinstance(self.encoder, nn.Sequential) else [self.encoder]
            self.encoder = nn.Sequential(*layers, nn.BatchNorm1d(config.latent, affine=False))
        self.class_names, self.train_size = spec.class_names, spec.train_size
        self.has_labels = "label" in spec.shapes
        self.shares: Tensor
        self.register_buffer("shares", torch.full((config.clusters,), 1 / config.clusters))
        self.classifier: NeighborClassifier | None = None
        self.teacher: nn.Module | None = None  # the encoder as it was at the last fit of the classifier
        if config.pull == NEIGHBORS:
            self.classifier = NeighborClassifier(config.latent, config.clusters)
        if config.pull == NEIGHBORS and config.propagate:
            self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.should_transform = any((config.degrees, config.pixels, config.zoom, config.shear))
        self.should_augment = self.should_transform or config.erase > 0
        self.should_contrast = config.contrast > 0
        if self.should_contrast and not self.should_augment:
            raise ConfigError(
                f"model.contrast={config.contrast}: requires augmented inputs. "
                f"Use model.degrees=10, or model.contrast=0."
            )
        self.centers = nn.Parameter(torch.rand(config.clusters, config.latent))

    def build_networks(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        return build_conv_autoencoder(shape, self.config)

    def encode_in_eval_mode(self, images: Tensor) -> Tensor:
        """Return codes (batch, latent) of `images`, normalized by the running statistics as in evaluation mode.

        The code of an image does not depend on the other images of the batch. Running statistics do not change.
        """
        if not self.config.latent_norm:
            return self.encoder(images)
        assert isinstance(self.encoder, nn.Sequential)
        norm = self.encoder[-1]
        assert isinstance(norm, nn.BatchNorm1d)
        codes = self.encoder[:-1](images)
        return F.batch_norm(codes, norm.running_mean, norm.running_var, eps=norm.eps)

    def encode_targets(self, images: Tensor) -> Tensor:
        """Return the codes (batch, latent) from which the clustering loss computes its targets.

        With `propagate`, the encoder as it was at the last fit computes them, since the classifier was fitted to
        its codes. Codes of the current encoder would change the targets at each step, and clusters could merge.
        """
        return self.encode_in_eval_mode(images) if self.teacher is None else self.teacher(images)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of all networks but the teacher, whose running statistics never change."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def phases(self) -> tuple[Phase, ...]:
        return (
            ClosedFormPhase("centers", self.fit_centers, is_full_batch=True, is_active=self.is_fit_step),
            GradientPhase("deep_kmeans", self, self.loss),
        )

    def count_pretraining_steps(self, clock: Clock) -> int:
        """Return the number of steps without the clustering loss: whole epochs, at least one if `pretrain` > 0."""
        epochs = self.config.pretrain * clock.total_steps / clock.steps_per_epoch
        return max(round(epochs), 1 if epochs else 0) * clock.steps_per_epoch

    def is_fit_step(self, clock: Clock) -> bool:
        """Return whether this step begins with a fit of the centers. Without pretraining no step does.

        The first fit is at the first step after pretraining, the others at the starts of later epochs.
        """
        pretraining_steps = self.count_pretraining_steps(clock)
        epoch, step_in_epoch = divmod(clock.step - 1 - pretraining_steps, clock.steps_per_epoch)
        if pretraining_steps == 0 or epoch < 0 or step_in_epoch > 0:
            return False
        if (
            epoch == 0 or self.config.pull != NEIGHBORS
        ):  # k-means, fitted again, would undo what the loss has learned
            return epoch == 0
        num_epochs = (clock.total_steps - pretraining_steps) // clock.steps_per_epoch
        fits_so_far = (count * self.config.fits // max(num_epochs, 1) for count in (epoch, epoch - 1))
        return next(fits_so_far) > next(fits_so_far)

    def scheduled_alpha(self, clock: Clock) -> float:
        """Return the weight of the clustering loss at this step."""
        return self.config.alpha * self.alpha_ramp_fraction(clock)

    def alpha_ramp_fraction(self, clock: Clock) -> float:
        """Return the fraction of the weight at this step, in [0, 1]: 0 during pretraining.

        It rises linearly from epoch `alpha_ramp[0]` to `alpha_ramp[1]`. Before that it has the value of the first
        epoch of the ramp.
        """
        if clock.step <= self.count_pretraining_steps(clock):
            return 0.0
        begin, end = self.config.alpha_ramp
        num_ramp_epochs = max(end - begin, 1)
        return min(max(clock.epoch - begin, 1), num_ramp_epochs) / num_ramp_epochs

    def fit_centers(self, samples: Batches, clock: Clock) -> Metrics:
        """Set the centers to the cluster means of the codes of the training split.

        The clusters are those of k-means, or of the neighbor classifier if `pull` is "neighbors".
        """
        codes = [self.encode_in_eval_mode(batch["image"]) for batch in samples]
        if self.classifier is None:
            initial_centers = kmeans_plusplus(codes, self.train_size, self.config.n_init, self.config.clusters)
            centers, _ = fit(codes, self.train_size, initial_centers, MAX_LLOYD_ITERATIONS)
            self.centers.copy_(centers)
            return {}
        rows = torch.cat(codes)
        chosen = torch.randperm(len(rows), device=rows.device)[:MAX_FIT_SAMPLES].sort().values
        neighbors = find_neighbors(rows[chosen], min(self.config.neighbors, len(chosen) - 1))
        if clock.step == self.count_pretraining_steps(clock) + 1 or self.teacher is None:
            views = self.encode_views(samples, chosen) if self.config.erase else []
            self.classifier.fit(rows[chosen], neighbors, self.config.n_init, views)
            probabilities = self.classifier(rows[chosen])
        else:  # another classifier could have other clusters
            probabilities = F.one_hot(nearest_center(rows[chosen], self.centers), len(self.centers)).to(rows)
        if self.teacher is not None:
            self.classifier.fit_clusters(rows[chosen], propagate(probabilities, neighbors).argmax(1))
            self.teacher.load_state_dict(self.encoder.state_dict())
        weights = F.one_hot(self.classifier(rows).argmax(1), len(self.centers)).to(rows)
        self.centers.copy_(weights.T @ rows / weights.sum(0).clamp_min(1).unsqueeze(1))
        return {}

    def encode_views(self, samples: Batches, chosen: Tensor) -> list[Tensor]:
        """Return the codes of FIT_VIEWS random views of some images of a split: (images, latent) each.

        `chosen` (images,) are the indices of the images in the split, ascending. Erased bands make views of
        different kinds of a class more similar than the images, such as sevens with and without a crossbar.
        """
        parts, start = [], 0
        for batch in samples:
            stop = start + len(batch["image"])
            parts.append(batch["image"][chosen[(chosen >= start) & (chosen < stop)] - start])
            start = stop
        batches = torch.cat(parts).split(VIEW_BATCH_SIZE)
        return [
            torch.cat([self.encode_in_eval_mode(self.augment(batch, can_erase=True)) for batch in batches])
            for _ in range(FIT_VIEWS)
        ]

    def augment(self, images: Tensor, *, can_erase: bool) -> Tensor:
        """Return random views of `images` (batch, channels, height, width), in the same shape.

        Without `can_erase` no band is erased.
        """
        config = self.config
        if self.should_transform:
            images = random_affine(
                images,
                degrees=config.degrees,
                shift_pixels=config.pixels,
                zoom=config.zoom,
                shear=config.shear,
            )
        return erase_bands(images, config.erase) if config.erase and can_erase else images

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the loss (scalar): reconstruction, plus contrast in pretraining and clustering after it."""
        images = batch["image"]
        is_pretraining = not self.alpha_ramp_fraction(clock)
        codes = self.encoder(self.augment(images, can_erase=is_pretraining))
        # The target is the original image: codes need not encode the augmentation.
        reconstruction = self.reconstruction_loss(self.decoder(codes), images)
        if is_pretraining:
            if not self.should_contrast:
                return reconstruction, detach_metrics(reconstruction=reconstruction)
            other_codes = self.encoder(self.augment(images, can_erase=True))
            contrast = contrastive_loss(promote_to_float32(codes), promote_to_float32(other_codes))
            loss = reconstruction + self.config.contrast * contrast
            return loss, detach_metrics(reconstruction=reconstruction, contrast=contrast)
        with torch.no_grad():  # no gradient flows through the assignment
            eval_codes = promote_to_float32(self.encode_targets(images))
            clusters = nearest_center(eval_codes, self.centers)
            self.shares.lerp_(batch_mean(soft_assignment(eval_codes, self.centers)), SHARES_MOMENTUM)
            used = batch_mean(F.one_hot(clusters, len(self.centers)).to(codes)).count_nonzero()
        distance = self.clustering_loss(codes, eval_codes)
        loss = reconstruction + self.scheduled_alpha(clock) * distance
        return loss, detach_metrics(reconstruction=reconstruction, distance=distance, centers_used=used)

    def clustering_loss(self, codes: Tensor, eval_codes: Tensor) -> Tensor:
        """Return the clustering loss, a scalar, of `codes` against targets computed from `eval_codes`.

        Both are (batch, latent): codes of views in training mode, and the result of `encode_targets`.
        """
        if self.classifier is None:
            clustering_loss = CLUSTERING_LOSSES.find(self.config.pull, self.config.pull_options)
            loss: Tensor = clustering_loss(codes, self.centers, eval_codes, self.shares)
            return loss
        return assignment_divergence(self.classifier(eval_codes), codes, self.centers)

    def assign(self, batch: Batch) -> Tensor:
        """Return the index of the nearest center of each sample: int64 (batch,)."""
        return nearest_center(self.encode(batch), self.centers)

    def list_parts(self, examples: Batch) -> dict[str, TechniquePart]:
        centers, ranges = CenterDistances(self.centers), {"distance": "squared, to each center"}
        part = TechniquePart(centers, {"code": self.encode(examples)}, "distance", ranges)
        return {**super().list_parts(examples), "centers": part}

    def list_metrics(self) -> Sequence[str]:
        return ("loss", "mse", *(CLUSTERING_SCORES if self.has_labels else ()))

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        labels_and_clusters: list[tuple[Tensor, Tensor]] = []  # labels and clusters of each batch
        scores = mean_scores(test_batches, lambda batch: self._score_with_clusters(batch, labels_and_clusters))
        if not labels_and_clusters:
            return scores
        labels, clusters = (torch.cat(part) for part in zip(*labels_and_clusters, strict=True))
        return {**scores, **clustering_scores(labels, clusters)}

    def _score_with_clusters(
        self, batch: Batch, labels_and_clusters: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        images = batch["image"]
        codes = self.encode(batch)
        clusters = nearest_center(codes, self.centers)
        if "label" in batch:
            labels_and_clusters.append((batch["label"], clusters))
        logits = self.decoder(codes)
        distance = (codes - self.centers[clusters]).square().mean(1)
        losses = torch.vmap(self.reconstruction_loss)(logits, images)
        return {"loss": losses + self.config.alpha * distance, "mse": mse(logits.sigmoid(), images)}

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        used, clusters = metrics.get("centers_used", float("inf")), self.config.clusters
        if used >= clusters / 2:
            return None
        return (
            f"only {used:.1f} of {clusters} centers are nearest to any image of a batch. "
            f"Use model.pretrain=0.5, which initializes the centers from the latents."
        )

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        images = examples["image"][:MAX_PREVIEW_IMAGES]
        # Each image is beside its reconstruction.
        pairs = torch.stack([images, self.reconstruct(images)], 1).flatten(0, 1)
        centers = self.decode(self.centers)
        return {
            "reconstructions": make_grid(pairs, columns=PREVIEW_COLUMNS),
            "centers": make_grid(centers, columns=min(PREVIEW_COLUMNS, len(centers))),
        }

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        return {"reconstructions": PictureLabels(columns=("original", "decoded") * (PREVIEW_COLUMNS // 2))}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        codes = self.encode(examples)
        if len(codes) < 3:
            return {}
        groups = examples.get("label", nearest_center(codes, self.centers))
        return {
            "tsne": draw_clusters(
                embed_tsne(codes), groups, cluster_names=self.class_names if "label" in examples else ()
            )
        }
