"""Sums, counts and labels of clusters, updated in place as points change cluster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from genexp.kmeans.blocks import get_chunk_size
from genexp.sharding import SINGLE_SHARD, all_reduce_sum, current_shard

UNASSIGNED = -1  # label of a point without a cluster
UPDATE_CHUNK_ELEMENTS = 2**17  # elements of reassigned points per copy on the CPU


class AssignmentBounds(Protocol):
    """Data of one assignment that makes the next one faster. It never changes a result."""

    def invalidate(self, start_indices: Tensor, point_indices: Tensor) -> None:
        """Discard the data of these pairs of start and point: other code changed their labels.

        `start_indices` and `point_indices` are int64 (pairs,).
        """

    def select_starts(self, start_indices: Tensor) -> AssignmentBounds:
        """Return the data of `start_indices` only: int64 indices (starts,)."""


@dataclass(frozen=True)
class ClusterSums:
    """Sums, counts and labels of an assignment of points to centers."""

    # dtype of `get_accumulation_dtype` (starts, clusters, features): sum of the points of each cluster
    sums: Tensor
    counts: Tensor  # int64 (starts, clusters): number of points of each cluster
    labels: Tensor  # dtype of `get_label_dtype` (starts, points): cluster of each point, or `UNASSIGNED`
    changed_fraction: float = 1.0  # fraction of the labels that the last assignment changed, in [0, 1]
    bounds: AssignmentBounds | None = None  # makes the next assignment faster

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
    """Return the dtype of sums on the device of `tensor`: float64, or float32 on MPS.

    Points are added and subtracted in many iterations, so rounding errors would accumulate.
    """
    return torch.float32 if tensor.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Reassignments:
    """Points of a block that change cluster, with one entry per point and start."""

    rows: Tensor  # int64 (moves,): row of the point in its block
    start_indices: Tensor  # int64 (moves,): index of the start
    new_labels: Tensor  # int64 (moves,): new cluster


class ClusterSumsUpdater:
    """Incremental update of the sums, counts and labels of `previous`, which it changes in place."""

    def __init__(self, previous: ClusterSums, centers: Tensor) -> None:
        self._sums, self._counts, self.labels = previous.sums, previous.counts, previous.labels
        if current_shard().index:  # all_reduce_sum adds the shards: only shard 0 starts from the previous sums
            self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        self._changed_count = 0
        # All chunks of points are copied to the same buffers: new allocations would fragment memory.
        shape = get_chunk_size(UPDATE_CHUNK_ELEMENTS, centers.shape[2], centers), centers.shape[2]
        self._point_buffer, self._cast_buffer = centers.new_empty(shape), previous.sums.new_empty(shape)

    def reassign(self, points: Tensor, labels: Tensor, reassignments: Reassignments) -> None:
        """Move points to their new clusters: update the sums, the counts and, in place, `labels`.

        `points` is (points, features), `labels` (starts, points).
        """
        clusters = self._counts.shape[1]
        old_clusters = labels[reassignments.start_indices, reassignments.rows].long()
        labels[reassignments.start_indices, reassignments.rows] = reassignments.new_labels.to(labels)
        self._changed_count += len(reassignments.rows)
        was_assigned = bool((old_clusters != UNASSIGNED).all())
        if not was_assigned and len(old_clusters) == labels.numel():
            self._add_unassigned(points, labels)
            return
        new_center_indices, old_center_indices = (
            reassignments.start_indices * clusters + reassignments.new_labels,
            reassignments.start_indices * clusters + old_clusters,
        )
        self._add_counts(new_center_indices, 1)
        if was_assigned:
            self._add_counts(old_center_indices, -1)
        sums, chunk_size = self._sums.flatten(0, 1), self._point_buffer.shape[0]
        for rows, targets, sources in zip(
            reassignments.rows.split(chunk_size),
            new_center_indices.split(chunk_size),
            old_center_indices.split(chunk_size),
            strict=True,
        ):
            moved = self._cast(torch.index_select(points, 0, rows, out=self._point_buffer[: rows.numel()]))
            sums.index_add_(0, targets, moved)
            if was_assigned:
                sums.index_add_(0, sources, moved, alpha=-1)

    def _add_unassigned(self, points: Tensor, labels: Tensor) -> None:
        """Add `points`, none of which had a cluster, to the clusters in `labels` (starts, points)."""
        starts, clusters = self._counts.shape
        offsets = torch.arange(0, starts * clusters, clusters, device=labels.device).unsqueeze(1)
        keys = labels.long() + offsets  # (starts, points)
        self._add_counts(keys.flatten(), 1)
        sums = self._sums.flatten(0, 1)
        chunks = zip(points.split(len(self._cast_buffer)), keys.split(len(self._cast_buffer), 1), strict=True)
        for chunk, chunk_keys in chunks:
            cast_chunk = self._cast(chunk)
            for start_keys in chunk_keys:
                sums.index_add_(0, start_keys, cast_chunk)

    def _cast(self, points: Tensor) -> Tensor:
        return self._cast_buffer[: points.shape[0]].copy_(points)

    def _add_counts(self, keys: Tensor, sign: int) -> None:
        self._counts += sign * keys.bincount(minlength=self._counts.numel()).view_as(self._counts)

    def build_cluster_sums(self, slices: list[slice], bounds: AssignmentBounds | None) -> ClusterSums:
        """Return the cluster sums after all blocks were assigned, reduced over all shards.

        `slices` are the slices of the data set that this process assigned.
        """
        sums, counts = all_reduce_sum(self._sums), all_reduce_sum(self._counts)
        sums.masked_fill_(counts.unsqueeze(2) == 0, 0)  # removes the rounding error of an empty cluster
        moved = int(all_reduce_sum(torch.tensor(self._changed_count, device=counts.device)))
        return ClusterSums(sums, counts, self._gather_labels(slices), moved / max(1, self.labels.numel()), bounds)

    def _gather_labels(self, slices: list[slice]) -> Tensor:
        """Return the labels of all points, including those assigned by other processes: (starts, points)."""
        if current_shard() == SINGLE_SHARD:
            return self.labels
        # int32 is the smallest sufficient dtype that all_reduce supports.
        labels = torch.zeros_like(self.labels, dtype=torch.int32)
        for index in slices:
            labels[:, index] = self.labels[:, index]
        return all_reduce_sum(labels).to(self.labels)
