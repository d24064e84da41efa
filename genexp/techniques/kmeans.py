"""k-means: Lloyd's algorithm on all points (Lloyd 1982), or mini-batch k-means (Sculley 2010)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod, sqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genexp.capabilities import CanCluster
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.errors import ConfigError
from genexp.images.grid import PADDING_VALUE, make_grid
from genexp.images.scatter import draw_clusters, project_pca
from genexp.kmeans.blocks import PointBlocks, moments, take
from genexp.kmeans.cluster_sums import ClusterSums, get_label_dtype
from genexp.kmeans.distances import CenterDistances, CenterScorer, nearest_center
from genexp.kmeans.empty_clusters import relocate_empty_clusters
from genexp.kmeans.hamerly_bounds import ExhaustiveAssignment
from genexp.kmeans.init import kmeans_plusplus, random_points
from genexp.kmeans.lloyd import assign, choose_assignment, lloyd_step
from genexp.metrics.clustering import CLUSTERING_SCORES, clustering_scores
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    ClosedFormPhase,
    Metrics,
    PictureLabels,
    Technique,
    TechniquePart,
    detach_metrics,
    register_technique,
)

INIT_METHODS = {"k-means++": kmeans_plusplus, "random": random_points}  # by model.init
# If (squared norm of the mean) / (total variance) exceeds this ratio, the origin is the mean of the points.
MAX_OFFSET_RATIO = 4.0
MAX_PREVIEW_CENTERS = 100  # in the grid of the preview
MAX_FIGURE_CLUSTERS, FIGURE_COLUMNS = 20, 12  # rows and columns of the gallery figure


@dataclass
class KMeansConfig:
    """Keys of conf/model/kmeans.yaml."""

    clusters: int
    init: str  # a key of `INIT_METHODS`, "uniform" in [0, 1], or a .npy file of centers (clusters, features)
    n_init: int  # number of starts; the one with the lowest inertia is the result
    init_samples: int | None  # number of random points that initial centers are drawn from; None: all points
    # largest squared center shift in an epoch of a converged start, relative to the mean feature variance
    tolerance: float
    batch_size: int | None  # that of the trainer; None: Lloyd's algorithm on all points

    def __post_init__(self) -> None:
        require(self.clusters > 0, "clusters", self.clusters, "must be at least 1")
        is_known = self.init in (*INIT_METHODS, "uniform") or self.init.endswith(".npy")
        choices = f"must be one of {', '.join(INIT_METHODS)}, uniform, or a .npy file of centers"
        require(is_known, "init", self.init, choices)
        require(self.n_init > 0, "n_init", self.n_init, "must be at least 1")
        is_enough = self.init_samples is None or self.init_samples >= self.clusters
        require(
            is_enough, "init_samples", self.init_samples, "must be at least model.clusters, or null for all points"
        )
        require(self.tolerance >= 0, "tolerance", self.tolerance, "must be 0 or more")


@register_technique("kmeans")
class KMeans(Technique, CanCluster):
    """k-means for several starts at once: each center moves to the mean of the points nearest to it."""

    Config = KMeansConfig
    num_examples = 500

    centers: Tensor  # (starts, clusters, features)
    counts: Tensor  # int64 (starts, clusters): points of each cluster; with batches, in all steps so far
    inertia: Tensor  # (starts,): sum of squared distances to the nearest center; estimated with batches
    active: Tensor  # bool (starts,): the start has not converged
    origin: Tensor  # (features,): subtracted from points and centers; far from 0, distances lose precision
    squared_norm_sum: Tensor  # (): sum of the squared distances of all points to `origin`
    tolerance_squared: Tensor  # (): largest squared center shift of a converged start in an epoch
    sums: Tensor  # float64 (starts, clusters, features): sums of each cluster's points; Lloyd's algorithm only
    labels: Tensor  # dtype of `get_label_dtype` (starts, points): cluster of each point; Lloyd's algorithm only
    epoch_start_centers: Tensor  # (starts, clusters, features): centers before this epoch; batches only

    def __init__(self, config: KMeansConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.stream_name = "point" if "point" in spec.shapes else "image"
        features = prod(spec.get_shape(self.stream_name))
        if config.clusters > spec.train_size:
            raise ConfigError(
                f"model.clusters={config.clusters}: exceeds the {spec.train_size} training points. "
                f"Use a smaller value, or a larger data set."
            )
        # Assignment step of `_assigned_starts`, int64 (starts,). A resumed run computes its bounds again.
        self._assignment: ExhaustiveAssignment | None = None
        self._assigned_starts = torch.empty(0, dtype=torch.long)
        self.file_centers = _load_centers(config, features) if config.init.endswith(".npy") else None
        starts = config.n_init if self.file_centers is None else 1
        self.register_buffer("centers", torch.zeros(starts, config.clusters, features))
        if config.batch_size is None:
            self.register_buffer("sums", torch.zeros(starts, config.clusters, features, dtype=torch.float64))
            labels = torch.zeros(starts, spec.train_size, dtype=get_label_dtype(config.clusters))
            self.register_buffer("labels", labels)
        else:
            self.register_buffer("epoch_start_centers", torch.zeros_like(self.centers))
        self.register_buffer("counts", torch.zeros(starts, config.clusters, dtype=torch.long))
        self.register_buffer("inertia", torch.zeros(starts))
        self.register_buffer("active", torch.ones(starts, dtype=torch.bool))
        self.register_buffer("origin", torch.zeros(features))
        self.register_buffer("squared_norm_sum", torch.zeros(()))
        self.register_buffer("tolerance_squared", torch.zeros(()))

    def phases(self) -> tuple[ClosedFormPhase]:
        if self.config.batch_size is None:
            return (ClosedFormPhase("centers", self.lloyd_step, is_full_batch=True),)
        return (ClosedFormPhase("centers", self.minibatch_step),)

    def initialize(self, train_batches: Batches) -> None:
        statistics = moments(PointBlocks(train_batches, self.stream_name))
        if (
            statistics.mean.square().sum()
            > MAX_OFFSET_RATIO * statistics.sum_squared_deviations / statistics.count
        ):
            self.origin.copy_(statistics.mean)
        self.squared_norm_sum.copy_(
            statistics.sum_squared_deviations + statistics.count * (statistics.mean - self.origin).square().sum()
        )
        self.tolerance_squared.copy_(self.config.tolerance * statistics.variance)
        points = self._build_points(train_batches)
        self.centers.copy_(self._init_centers(points, statistics.count))
        if self.config.batch_size is None:
            centers = self.centers - self.origin
            starts = torch.arange(len(centers), device=centers.device)
            self._assigned_starts = starts
            self._assignment = choose_assignment(points, centers, statistics.count)
            self._store_cluster_sums(starts, centers, assign(points, centers, statistics.count, self._assignment))
        else:
            self.epoch_start_centers.copy_(self.centers)

    def _build_points(self, samples: Batches) -> PointBlocks:
        return PointBlocks(samples, self.stream_name, self.origin if self._has_origin else None)

    def _init_centers(self, points: PointBlocks, count: int) -> Tensor:
        if self.file_centers is not None:
            return self.file_centers
        if self.config.init == "uniform":
            return torch.rand_like(self.centers)
        starts, clusters, _ = self.centers.shape
        num_samples = self.config.init_samples
        if num_samples is not None and num_samples < count:
            points_sample = take(points, torch.randperm(count)[:num_samples])
            return INIT_METHODS[self.config.init]([points_sample], num_samples, starts, clusters) + self.origin
        return INIT_METHODS[self.config.init](points, count, starts, clusters) + self.origin

    def lloyd_step(self, samples: Batches, clock: Clock) -> Metrics:
        """Run one iteration of Lloyd's algorithm for the starts that have not converged.

        Centers, sums, counts, labels and inertia are consistent with each other before and after.
        """
        active = self.active.nonzero().squeeze(1)
        shift = torch.zeros_like(self.inertia)
        if len(active):
            points, old_centers = self._build_points(samples), self.centers[active] - self.origin
            sums = ClusterSums(self.sums[active], self.counts[active], self.labels[active])
            means, sums = lloyd_step(points, old_centers, sums, self._get_assignment(points, old_centers, active))
            self.centers[active] = means + self.origin
            self._store_cluster_sums(active, means, sums)
            shift[active] = (means - old_centers).square().sum((1, 2))
            self.active[active] = shift[active] > self.tolerance_squared
        return self._build_metrics(shift)

    def _get_assignment(self, points: PointBlocks, centers: Tensor, starts: Tensor) -> ExhaustiveAssignment:
        """Return the assignment step of these starts, which are fewer in each step: int64 indices (starts,).

        `centers` is (starts, clusters, features).
        """
        is_kept = torch.isin(self._assigned_starts, starts)
        if self._assignment is None or int(is_kept.sum()) < len(starts):
            self._assignment = choose_assignment(points, centers, self.spec.train_size)
        elif not is_kept.all():
            self._assignment.select_starts(is_kept.nonzero().squeeze(1))
        self._assigned_starts = starts
        return self._assignment

    def _store_cluster_sums(self, starts: Tensor, centers: Tensor, cluster_sums: ClusterSums) -> None:
        self.sums[starts], self.counts[starts] = cluster_sums.sums, cluster_sums.counts
        self.labels[starts] = cluster_sums.labels
        inertia = cluster_sums.inertia_without_norms(centers) + self.squared_norm_sum
        self.inertia[starts] = inertia.clamp(min=0).to(self.inertia)

    def minibatch_step(self, batch: Batch, clock: Clock) -> Metrics:
        """Move each center to the mean of all points ever assigned to it, including those of `batch`.

        Returns metrics: name → scalar.
        """
        points = self._flatten(batch)
        old_centers = self.centers - self.origin
        batch_sums = assign([points], old_centers, len(points))
        partial_inertia = batch_sums.inertia_without_norms(old_centers).to(old_centers)
        sums = (old_centers * self.counts.unsqueeze(2)).to(batch_sums.sums) + batch_sums.sums
        cluster_sums = ClusterSums(sums, self.counts + batch_sums.counts, batch_sums.labels)
        if clock.is_epoch_end:  # a cluster that is still empty after a whole epoch is relocated
            cluster_sums = relocate_empty_clusters(cluster_sums, old_centers, [points])
        self.centers.copy_(cluster_sums.means(old_centers) + self.origin)
        self.counts.copy_(cluster_sums.counts)
        fraction = len(points) / self.spec.train_size
        estimate = (partial_inertia + points.square().sum()).clamp(min=0) / fraction
        self.inertia.lerp_(estimate, 1.0 if clock.step == 1 else min(1.0, 2 * fraction))
        shift = (self.centers - self.epoch_start_centers).square().sum((1, 2))
        if clock.is_epoch_end:
            self.active.copy_(shift > self.tolerance_squared)
            self.epoch_start_centers.copy_(self.centers)
        return self._build_metrics(shift)

    def _build_metrics(self, shift: Tensor) -> Metrics:
        best = self.inertia.argmin()
        inertia = self.inertia[best]
        per_point = inertia / self.spec.train_size
        return detach_metrics(inertia=inertia, inertia_per_point=per_point, shift=shift[best].sqrt())

    @property
    def has_converged(self) -> bool:
        return not self.active.any()

    @property
    def best_centers(self) -> Tensor:
        """Centers (clusters, features) of the start with the lowest inertia."""
        return self.centers[self.inertia.argmin()]

    def assign(self, batch: Batch) -> Tensor:
        """Return the cluster of each sample: int64 (batch,)."""
        return nearest_center(self._flatten(batch), self.best_centers - self.origin)

    def list_parts(self, examples: Batch) -> dict[str, TechniquePart]:
        ranges = {"distance": "squared, to each center", **({"image": "[0, 1]"} if "image" in examples else {})}
        inputs = {self.stream_name: examples[self.stream_name]}
        return {"centers": TechniquePart(CenterDistances(self.best_centers), inputs, "distance", ranges)}

    def list_metrics(self) -> Sequence[str]:
        return ("inertia_per_point", *(CLUSTERING_SCORES if "label" in self.spec.shapes else ()))

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        scorer = CenterScorer((self.best_centers - self.origin).unsqueeze(0))
        labels, clusters, inertia, count = [], [], 0.0, 0
        for batch in test_batches:
            for points in self._flatten(batch).split(scorer.chunk_size):
                nearest = scorer.find_nearest(points)
                squared_norms = torch.linalg.vector_norm(points, dim=1).square_()
                squared_distances = squared_norms + 2 * nearest.own_scores.squeeze(1)
                inertia += float(squared_distances.clamp(min=0).sum())
                count += len(points)
                clusters.append(nearest.labels.squeeze(1))
            labels += [batch["label"]] if "label" in batch else []
        scores = clustering_scores(torch.cat(labels), torch.cat(clusters)) if labels else {}
        return {"inertia_per_point": inertia / count, **scores}

    def _flatten(self, batch: Batch) -> Tensor:
        """Return the samples of a batch as points relative to `origin`: (batch, features)."""
        points = batch[self.stream_name].flatten(1)
        return points - self.origin if self._has_origin else points

    @property
    def _has_origin(self) -> bool:
        # An origin of 0 is not subtracted, which saves a pass over the points.
        return bool(self.origin.any())

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        if self.stream_name == "image":
            shown = self.best_centers[:MAX_PREVIEW_CENTERS].unflatten(1, self.spec.image_shape)
            return {"centers": make_grid(shown.clamp(0, 1), columns=ceil(sqrt(len(shown))))}
        return {"clusters": self._draw_scatter(examples)}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        if self.stream_name == "image":
            return {"clusters": self._draw_members(examples["image"])}
        return {}

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        count = min(self.config.clusters, MAX_FIGURE_CLUSTERS)
        rows = [f"cluster {index}" for index in range(count)] if self.stream_name == "image" else ()
        return {
            "clusters": PictureLabels(rows=rows, columns=("center", *[""] * (FIGURE_COLUMNS - 1)) if rows else ())
        }

    def _draw_scatter(self, examples: Batch) -> Tensor:
        points, centers = project_pca(examples["point"], self.best_centers)
        return draw_clusters(points, self.assign(examples), centers)

    def _draw_members(self, images: Tensor) -> Tensor:
        """Return an image with one row per cluster: its center, then its members from near to far.

        `images` is (images, channels, height, width). The result is (channels, height, width).
        """
        centers = self.best_centers[:MAX_FIGURE_CLUSTERS]
        distances = torch.cdist(images.flatten(1), centers)  # (images, clusters)
        is_other_cluster = self.assign({"image": images}).unsqueeze(1) != torch.arange(
            len(centers), device=images.device
        )
        nearest_first = distances.masked_fill(is_other_cluster, torch.inf).sort(0)
        member_indices = nearest_first.indices[: FIGURE_COLUMNS - 1].T  # (clusters, members)
        is_blank = nearest_first.values[: FIGURE_COLUMNS - 1].T.isinf()
        members = images[member_indices].masked_fill(is_blank[..., None, None, None], PADDING_VALUE)
        images_by_cluster = torch.cat([centers.unflatten(1, self.spec.image_shape).unsqueeze(1), members], 1)
        return make_grid(images_by_cluster.flatten(0, 1).clamp(0, 1), columns=images_by_cluster.shape[1])


def _load_centers(config: KMeansConfig, features: int) -> Tensor:
    """Return the centers (clusters, features) from the file `config.init`. Raises ConfigError."""
    if not Path(config.init).is_file():
        raise ConfigError(f"model.init={config.init}: not a file. Use the name of a method, or a .npy file.")
    try:
        with np.errstate(over="ignore"):  # a shape beyond 64 bits, which is an error below
            array = np.load(Path(config.init), mmap_mode="r", allow_pickle=False)  # reads the header only
        shape = array.shape
        centers = torch.from_numpy(np.array(array)).float() if shape == (config.clusters, features) else None
    except (OSError, ValueError, TypeError, EOFError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"model.init={config.init}: not readable as centers ({error}). Use a .npy file."
        ) from None
    if centers is None:
        raise ConfigError(
            f"model.init={config.init}: has shape {shape}, not (model.clusters, features) = "
            f"{(config.clusters, features)}. Use a file of that shape."
        )
    if not centers.isfinite().all():
        raise ConfigError(f"model.init={config.init}: contains NaN or infinity. Use a file of finite numbers.")
    return centers
