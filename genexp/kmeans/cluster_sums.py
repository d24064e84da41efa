"""Sums, counts and labels of clusters, updated in place as points change cluster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genexp.kmeans.blocks import GPU_CHUNK_FACTOR, get_chunk_size
from genexp.sharding import SINGLE_SHARD, all_reduce_sum, current_shard

UNASSIGNED = -1  # label of a point without a cluster
UPDATE_CHUNK_ELEMENTS = 2**17  # elements of points that change cluster per copy on the CPU
# Partial sums of about this many points per cluster are computed in float32 and added up in float64. The number is
# small, which keeps rounding errors small. A complete sum in float64 takes five times as long.
POINTS_PER_PARTIAL_SUM = 64


@dataclass(frozen=True)
class ClusterSums:
    """Sums, counts and labels of an assignment of points to centers."""

    # dtype of `get_accumulation_dtype` (starts, clusters, features): sum of the points of each cluster
    sums: Tensor
    counts: Tensor  # int64 (starts, clusters): number of points of each cluster
    labels: Tensor  # dtype of `get_label_dtype` (starts, points): cluster of each point, or `UNASSIGNED`

    @classmethod
    def create_unassigned(cls, centers: Tensor, num_points: int) -> ClusterSums:
        """Return the sums of `num_points` unassigned points. `centers` gives the shape and the device."""
        starts, clusters, _ = centers.shape
        return cls(
            torch.zeros_like(centers, dtype=get_accumulation_dtype(centers)),
            torch.zeros(starts, clusters, dtype=torch.long, device=centers.device),
            torch.full((starts, num_points), UNASSIGNED, dtype=get_label_dtype(clusters), device=centers.device),
        )

    def means(self, fallback: Tensor) -> Tensor:
        """Return the mean of each cluster, (starts, clusters, features), or `fallback` where it is empty."""
        counts = self.counts.unsqueeze(2)
        means = (self.sums / counts).to(fallback.dtype)
        return means if self.has_no_empty_clusters else torch.where(counts > 0, means, fallback)

    @cached_property
    def has_no_empty_clusters(self) -> bool:
        """True if every cluster of every start has points."""
        return bool(self.counts.all())

    def inertia_without_norms(self, centers: Tensor) -> Tensor:
        """Return the inertia of each start minus the sum of the squared norms of all points: (starts,).

        `centers` is (starts, clusters, features).
        """
        cast_centers = centers.to(self.sums)
        return (self.counts * cast_centers.square().sum(2) - 2 * (cast_centers * self.sums).sum(2)).sum(1)


def get_label_dtype(num_clusters: int) -> torch.dtype:
    """Return the dtype of labels for this number of clusters and `UNASSIGNED`: int16 or int32."""
    return torch.int16 if num_clusters <= torch.iinfo(torch.int16).max else torch.int32


def get_accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of sums on the device of `tensor` (of any shape): float64, or float32 on MPS.

    Points are added and subtracted in many iterations, so rounding errors would accumulate.
    """
    return torch.float32 if tensor.device.type == "mps" else torch.float64


class ClusterSumsUpdate:
    """Update of the sums, counts and labels of `previous`, which it changes in place.

    Only points that change cluster are read. They are added in the order of the data set, so that the sums depend
    on the labels before and after, and not on how the new labels were found.
    """

    def __init__(self, previous: ClusterSums) -> None:
        self._sums, self._counts, self._labels = previous.sums, previous.counts, previous.labels
        if current_shard().index:  # all_reduce_sum adds up the shards, so only shard 0 includes the previous sums
            self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        self._slices: list[slice] = []

    def move(self, points: Tensor, index: slice, new_labels: Tensor) -> None:
        """Move `points` (points, features), those in `index` of the data set, to `new_labels` (starts, points)."""
        self._slices.append(index)
        labels = self._labels[:, index]
        start_indices, rows = (labels != new_labels).nonzero(as_tuple=True)
        if not len(rows):
            return
        if bool((labels == UNASSIGNED).all()):
            self._add_all(points, new_labels)
        else:
            self._move(points, rows, labels, new_labels, start_indices)
        labels.copy_(new_labels)

    def _move(
        self, points: Tensor, rows: Tensor, labels: Tensor, new_labels: Tensor, start_indices: Tensor
    ) -> None:
        """Move the `rows` of `points` from `labels` to `new_labels` (starts, points) in these starts."""
        offsets = start_indices * self._counts.shape[1]
        sources, targets = offsets + labels[start_indices, rows], offsets + new_labels[start_indices, rows]
        self._add_counts(targets, 1)
        self._add_counts(sources, -1)
        sums = self._sums.flatten(0, 1)
        size = get_chunk_size(UPDATE_CHUNK_ELEMENTS, points.shape[1], points)
        for parts in zip(rows.split(size), targets.split(size), sources.split(size), strict=True):
            moved = points.index_select(0, parts[0]).to(sums.dtype)
            sums.index_add_(0, parts[1], moved)
            sums.index_add_(0, parts[2], moved, alpha=-1)

    def _add_all(self, points: Tensor, labels: Tensor) -> None:
        """Add all `points` to the clusters `labels` (starts, points)."""
        clusters = self._counts.shape[1]
        partial = torch.empty_like(self._sums[0], dtype=points.dtype)
        size = POINTS_PER_PARTIAL_SUM * clusters * (1 if points.device.type == "cpu" else GPU_CHUNK_FACTOR)
        for start, start_labels in enumerate(labels.long()):
            self._add_counts(start_labels + start * clusters, 1)
            for chunk, chunk_labels in zip(points.split(size), start_labels.split(size), strict=True):
                self._sums[start] += partial.zero_().index_add_(0, chunk_labels, chunk)

    def _add_counts(self, keys: Tensor, sign: int) -> None:
        self._counts += sign * keys.bincount(minlength=self._counts.numel()).view_as(self._counts)

    def finish(self) -> ClusterSums:
        """Return the cluster sums after all blocks were assigned, reduced over all shards."""
        sums, counts = all_reduce_sum(self._sums), all_reduce_sum(self._counts)
        sums.masked_fill_(counts.unsqueeze(2) == 0, 0)  # removes the rounding error of an empty cluster
        return ClusterSums(sums, counts, self._gather_labels())

    def _gather_labels(self) -> Tensor:
        """Return the labels of all points, including those assigned by other processes: (starts, points)."""
        if current_shard() == SINGLE_SHARD:
            return self._labels
        # int32 is the smallest sufficient dtype that all_reduce supports.
        labels = torch.zeros_like(self._labels, dtype=torch.int32)
        for index in self._slices:
            labels[:, index] = self._labels[:, index]
        return all_reduce_sum(labels).to(self._labels)
