"""k-means: Lloyd's algorithm on all points (Lloyd 1982), or on batches of them (Sculley 2010)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod, sqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genexp.capabilities import CanCluster
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.errors import ConfigError
from genexp.images.grid import BACKGROUND, tile
from genexp.images.scatter import draw_clusters, flattened
from genexp.kmeans.blocks import PointBlocks, moments, take
from genexp.kmeans.distances import nearest_center
from genexp.kmeans.hints import AssignmentBounds
from genexp.kmeans.init import kmeans_plusplus, random_points
from genexp.kmeans.lloyd import lloyd_step, relocate_empty_clusters, assign
from genexp.kmeans.totals import ClusterSums, label_dtype
from genexp.metrics.clustering import clustering_scores
from genexp.technique import Batch, Batches, Clock, Metrics, ClosedFormPhase, Technique, register, detach_metrics

FROM_POINTS = {"k-means++": kmeans_plusplus, "random": random_points}  # initial centres
FAR = 4.0  # points are far from 0 where their mean's squared norm is so many times their variance
SHOWN_CENTRES = 100  # in a grid, at most
SHOWN_CLUSTERS, SHOWN_MEMBERS = 20, 12  # rows and columns of the figure of clusters


@dataclass
class KMeansConfig:
    """conf/model/kmeans.yaml."""

    clusters: int
    init: str
    n_init: int  # starts, of which the best counts
    init_samples: int | None  # points that k-means++ chooses from
    tolerance: float  # of the squared move of all centres in an epoch, in mean variances of a feature
    batch_size: int | None  # the trainer's: null for Lloyd on all points

    def __post_init__(self) -> None:
        require(self.clusters > 0, "clusters", self.clusters, "use at least 1")
        known = self.init in (*FROM_POINTS, "uniform") or self.init.endswith(".npy")
        choices = f"choose one of {', '.join(FROM_POINTS)}, uniform, or give a file of centres (.npy)"
        require(known, "init", self.init, choices)
        require(self.n_init > 0, "n_init", self.n_init, "use at least 1")
        enough = self.init_samples is None or self.init_samples >= self.clusters
        require(enough, "init_samples", self.init_samples, "use at least model.clusters, or null for all points")
        require(self.tolerance >= 0, "tolerance", self.tolerance, "use 0 or more")


@dataclass(frozen=True)
class _Spared:
    """What spares comparisons. It changes no result, and is found anew where it is missing: after a resume."""

    starts: Tensor
    centres: Tensor  # what the hints belong to
    changed: float
    hints: AssignmentBounds | None


@register
class KMeans(Technique, CanCluster):
    """Moves each centre to the mean of the points nearest to it, for several starts at once."""

    Config = KMeansConfig
    name = "kmeans"
    objective = "inertia_per_point"
    example_count = 500

    centres: Tensor  # (starts, clusters, features)
    counts: Tensor  # int64 (starts, clusters): points of each cluster, in batches all it ever had
    inertia: Tensor  # (starts,)
    moving: Tensor  # bool (starts,)
    origin: Tensor  # (features,) what distances are computed about, so that no digits are lost far from 0
    norm: Tensor  # () the squared distances of all points to the origin, summed
    still: Tensor  # () starts whose centres move less in an epoch, squared, have converged
    sums: Tensor  # like centres, in float64: of the points of each cluster; for Lloyd's algorithm
    labels: Tensor  # label_type (starts, points): the cluster of each point; for Lloyd's algorithm
    epoch_began: Tensor  # the centres before this epoch; for batches

    def __init__(self, config: KMeansConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.stream = "point" if "point" in spec.shapes else "image"
        features = prod(spec.shape(self.stream))
        if config.clusters > spec.train_size:
            raise ConfigError(
                f"model.clusters={config.clusters} exceeds the {spec.train_size} points; "
                f"lower it or choose a larger data set"
            )
        self._spared: _Spared | None = None
        self.file_centres = _load(config, features) if config.init.endswith(".npy") else None
        starts = config.n_init if self.file_centres is None else 1
        self.register_buffer("centres", torch.zeros(starts, config.clusters, features))
        if config.batch_size is None:
            self.register_buffer("sums", torch.zeros(starts, config.clusters, features, dtype=torch.float64))
            labels = torch.zeros(starts, spec.train_size, dtype=label_dtype(config.clusters))
            self.register_buffer("labels", labels)
        else:
            self.register_buffer("epoch_began", torch.zeros_like(self.centres))
        self.register_buffer("counts", torch.zeros(starts, config.clusters, dtype=torch.long))
        self.register_buffer("inertia", torch.zeros(starts))
        self.register_buffer("moving", torch.ones(starts, dtype=torch.bool))
        self.register_buffer("origin", torch.zeros(features))
        self.register_buffer("norm", torch.zeros(()))
        self.register_buffer("still", torch.zeros(()))

    def phases(self) -> tuple[ClosedFormPhase]:
        if self.config.batch_size is None:
            return (ClosedFormPhase("centres", self.iterate, is_full_batch=True),)
        return (ClosedFormPhase("centres", self.follow),)

    def initialize(self, samples: Batches) -> None:
        found = moments(PointBlocks(samples, self.stream))
        if found.mean.square().sum() > FAR * found.scatter / found.count:
            self.origin.copy_(found.mean)
        self.norm.copy_(found.scatter + found.count * (found.mean - self.origin).square().sum())
        self.still.copy_(self.config.tolerance * found.variance)
        points = self._points(samples)
        self.centres.copy_(self._initial_centres(points, found.count))
        if self.config.batch_size is None:
            centres = self.centres - self.origin
            self._keep(
                torch.arange(len(centres), device=centres.device), centres, assign(points, centres, found.count)
            )
        else:
            self.epoch_began.copy_(self.centres)

    def _points(self, samples: Batches) -> PointBlocks:
        # Nothing is subtracted where that changes nothing: it would be another pass over each block.
        return PointBlocks(samples, self.stream, self.origin if self.origin.any() else None)

    def _initial_centres(self, points: PointBlocks, count: int) -> Tensor:
        if self.file_centres is not None:
            return self.file_centres
        if self.config.init == "uniform":
            return torch.rand_like(self.centres)
        starts, clusters, _ = self.centres.shape
        sample = self.config.init_samples
        if sample is not None and sample < count:
            chosen = take(points, torch.randperm(count)[:sample])
            return FROM_POINTS[self.config.init]([chosen], sample, starts, clusters) + self.origin
        return FROM_POINTS[self.config.init](points, count, starts, clusters) + self.origin

    def iterate(self, samples: Batches, clock: Clock) -> Metrics:
        """Do one Lloyd iteration. Centres, sums, counts, labels and inertia belong together before and after."""
        going = self.moving.nonzero().squeeze(1)
        shift = torch.zeros_like(self.inertia)
        if len(going):
            points, before = self._points(samples), self.centres[going] - self.origin
            means, totals = lloyd_step(points, before, self._known(going, before))
            self.centres[going] = means + self.origin
            self._keep(going, means, totals)
            shift[going] = (means - before).square().sum((1, 2))
            self.moving[going] = shift[going] > self.still
        return self._metrics(shift)

    def _known(self, starts: Tensor, centres: Tensor) -> ClusterSums:
        """Return what is known of `starts`, with the hints where they still belong to `centres`."""
        totals = ClusterSums(self.sums[starts], self.counts[starts], self.labels[starts])
        if self._spared is None:
            return totals
        kept = torch.isin(self._spared.starts, starts).nonzero().squeeze(1)
        if not torch.equal(self._spared.centres[kept], centres):
            return totals
        hints = self._spared.hints
        if hints is not None and len(kept) < len(self._spared.starts):
            hints = hints.select_starts(kept)
        return replace(totals, changed=self._spared.changed, hints=hints)

    def _keep(self, starts: Tensor, centres: Tensor, totals: ClusterSums) -> None:
        self.sums[starts], self.counts[starts], self.labels[starts] = totals.sums, totals.counts, totals.labels
        self.inertia[starts] = (totals.partial_inertia(centres) + self.norm).clamp(min=0).to(self.inertia)
        self._spared = _Spared(starts, centres, totals.changed_fraction, totals.bounds)

    def follow(self, batch: Batch, clock: Clock) -> Metrics:
        """Move centres to the mean of all points that were ever assigned to them, those of `batch` included."""
        points = batch[self.stream].flatten(1) - self.origin
        before = self.centres - self.origin
        new = assign([points], before, len(points))
        energy = new.partial_inertia(before).to(before)
        sums = (before * self.counts.unsqueeze(2)).to(new.sums) + new.sums
        totals = ClusterSums(sums, self.counts + new.counts, new.labels)
        if clock.is_epoch_end:  # a centre that got no point in a whole epoch is lost
            totals = relocate_empty_clusters(totals, before, [points])
        self.centres.copy_(totals.means(before) + self.origin)
        self.counts.copy_(totals.counts)
        part = len(points) / self.spec.train_size
        estimate = (energy + points.square().sum()).clamp(min=0) / part
        self.inertia.lerp_(estimate, 1.0 if clock.step == 1 else min(1.0, 2 * part))
        shift = (self.centres - self.epoch_began).square().sum((1, 2))
        if clock.is_epoch_end:
            self.moving.copy_(shift > self.still)
            self.epoch_began.copy_(self.centres)
        return self._metrics(shift)

    def _metrics(self, shift: Tensor) -> Metrics:
        best = self.inertia.argmin()
        inertia = self.inertia[best]
        per_point = inertia / self.spec.train_size
        return detach_metrics(inertia=inertia, inertia_per_point=per_point, shift=shift[best].sqrt())

    @property
    def has_converged(self) -> bool:
        return not self.moving.any()

    @property
    def best_centres(self) -> Tensor:
        """Return the centres (clusters, features) of the best start."""
        return self.centres[self.inertia.argmin()]

    def assign(self, batch: Batch) -> Tensor:
        """Return the cluster of each sample: int64 (batch,)."""
        return nearest_center(batch[self.stream].flatten(1) - self.origin, self.best_centres - self.origin)

    def evaluate(self, samples: Batches) -> dict[str, float]:
        centres, labels, clusters, inertia, count = self.best_centres, [], [], 0.0, 0
        for batch in samples:
            points, assigned = batch[self.stream].flatten(1), self.assign(batch)
            inertia += float((points - centres[assigned]).square().sum())
            count += len(points)
            clusters.append(assigned)
            labels += [batch["label"]] if "label" in batch else []
        scores = clustering_scores(torch.cat(labels), torch.cat(clusters)) if labels else {}
        return {"inertia_per_point": inertia / count, **scores}

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        if self.stream == "image":
            shown = self.best_centres[:SHOWN_CENTRES].unflatten(1, self.spec.image_shape)
            return {"centres": tile(shown.clamp(0, 1), columns=ceil(sqrt(len(shown))))}
        return {"clusters": self._scatter(examples)}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        if self.stream == "image":
            return {"clusters": self._members(examples["image"])}
        return {"assignment": self._scatter(examples)}

    def _scatter(self, examples: Batch) -> Tensor:
        points, centres = flattened(examples["point"], self.best_centres)
        return draw_clusters(points, self.assign(examples), centres)

    def _members(self, images: Tensor) -> Tensor:
        """Return a picture with a row for each cluster: its centre, and the images nearest to it that it has."""
        centres = self.best_centres[:SHOWN_CLUSTERS]
        distances = torch.cdist(images.flatten(1), centres)  # (images, clusters)
        others = self.assign({"image": images}).unsqueeze(1) != torch.arange(len(centres), device=images.device)
        nearest_first = distances.masked_fill(others, torch.inf).sort(0)
        chosen = nearest_first.indices[: SHOWN_MEMBERS - 1].T  # (clusters, members)
        blank = nearest_first.values[: SHOWN_MEMBERS - 1].T.isinf()
        members = images[chosen].masked_fill(blank[..., None, None, None], BACKGROUND)
        shown = torch.cat([centres.unflatten(1, self.spec.image_shape).unsqueeze(1), members], 1)
        return tile(shown.flatten(0, 1).clamp(0, 1), columns=shown.shape[1])


def _load(config: KMeansConfig, features: int) -> Tensor:
    """Return the centres (clusters, features) in the file that the config names. Raises ConfigError."""
    try:
        centres = torch.from_numpy(np.load(Path(config.init), allow_pickle=False)).float()
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise ConfigError(
            f"model.init={config.init} cannot be read as centres ({error}); give a .npy file"
        ) from None
    if centres.shape != (config.clusters, features):
        raise ConfigError(
            f"model.init={config.init} has shape {tuple(centres.shape)} where model.clusters and the data set "
            f"ask for {(config.clusters, features)}; give a file of that shape"
        )
    if not centres.isfinite().all():
        raise ConfigError(f"model.init={config.init} holds NaN or infinite numbers; give a file of finite ones")
    return centres
