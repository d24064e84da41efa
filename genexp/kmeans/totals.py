"""What Lloyd's algorithm knows of the points with respect to some centers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genexp.kmeans.hints import AssignmentBounds

UNASSIGNED = -1  # the cluster of a point that has none yet


@dataclass(frozen=True)
class ClusterSums:
    """What is known of the points with respect to some centers."""

    sums: Tensor  # float64 (starts, clusters, features) of the points nearest to each center
    counts: Tensor  # int64 (starts, clusters)
    labels: Tensor  # label_type (starts, points): the nearest center of each point
    changed_fraction: float = 1.0  # part of the labels that differ from those of the centers before
    bounds: AssignmentBounds | None = None  # what spares comparisons with the next centers

    @classmethod
    def zeros(cls, centers: Tensor, count: int) -> ClusterSums:
        """Return what is known of `count` points that were never assigned."""
        starts, clusters, _ = centers.shape
        return cls(
            torch.zeros_like(centers, dtype=accumulation_dtype(centers)),
            torch.zeros(starts, clusters, dtype=torch.long, device=centers.device),
            torch.full((starts, count), UNASSIGNED, dtype=label_dtype(clusters), device=centers.device),
        )

    def means(self, fallback: Tensor) -> Tensor:
        """Return the mean of each cluster; where it has no points, `otherwise`."""
        counts = self.counts.unsqueeze(2)
        means = (self.sums / counts).to(fallback.dtype)
        return means if self.has_no_empty_clusters else torch.where(counts > 0, means, fallback)

    @cached_property
    def has_no_empty_clusters(self) -> bool:
        """Return whether every cluster has points."""
        return bool(self.counts.all())

    def partial_inertia(self, centers: Tensor) -> Tensor:
        """Return the inertia (starts,) of the points about `centers`, less the squared norms of all points."""
        rows = centers.to(self.sums)
        return (self.counts * rows.square().sum(2) - 2 * (rows * self.sums).sum(2)).sum(1)


def label_dtype(clusters: int) -> torch.dtype:
    """Return the smallest type that names each of so many clusters, and NOWHERE."""
    return torch.int16 if clusters <= torch.iinfo(torch.int16).max else torch.int32


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type to sum in: points come and go, and what a sum loses by rounding it would never get back."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
