"""What is known of the points, brought from some centers to the next in place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from genexp.kmeans.blocks import get_chunk_rows
from genexp.sharding import SINGLE_SHARD, all_reduce_sum, current_shard

UNASSIGNED = -1  # the cluster of a point that has none yet
UPDATE_CHUNK_ELEMENTS = 2**17  # of points that change their cluster, which are copied, so many at a time


class AssignmentBounds(Protocol):
    """What spares comparisons. It changes no result."""

    def invalidate(self, starts: Tensor, points: Tensor) -> None:
        """Drop what concerns the clusters of `points`, in `starts`: these were given to others."""

    def select_starts(self, starts: Tensor) -> AssignmentBounds:
        """Return what concerns `starts` (indices) alone."""


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


@dataclass(frozen=True)
class Reassignments:
    """Points that go to another cluster."""

    rows: Tensor  # int64 (moves,) which point
    starts: Tensor  # in which start
    clusters: Tensor  # the cluster


class ClusterUpdate:
    """Follows points that move, with the sums, the counts and the labels that were `known`."""

    def __init__(self, previous: ClusterSums, centers: Tensor) -> None:
        self._sums, self._counts, self.labels = previous.sums, previous.counts, previous.labels
        if current_shard().index:  # the sums of all parts are added up in the end: one of them has what is known
            self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        self._moved_count = 0
        # Points are copied to the same place, part by part: memory stays in one piece.
        shape = get_chunk_rows(UPDATE_CHUNK_ELEMENTS, centers.shape[2], centers), centers.shape[2]
        self._point_buffer, self._cast_buffer = centers.new_empty(shape), previous.sums.new_empty(shape)

    def reassign(self, points: Tensor, labels: Tensor, reassignments: Reassignments) -> None:
        """Let some of `points`, which have `labels` (starts, points), go from their clusters to others."""
        clusters = self._counts.shape[1]
        old_clusters = labels[reassignments.starts, reassignments.rows].long()
        labels[reassignments.starts, reassignments.rows] = reassignments.clusters.to(labels)
        self._moved_count += len(reassignments.rows)
        was_assigned = bool((old_clusters != UNASSIGNED).all())
        if not was_assigned and len(old_clusters) == labels.numel():
            self._add_unassigned(points, labels)
            return
        target_keys, source_keys = (
            reassignments.starts * clusters + reassignments.clusters,
            reassignments.starts * clusters + old_clusters,
        )
        self._add_counts(target_keys, 1)
        if was_assigned:
            self._add_counts(source_keys, -1)
        sums, chunk_rows = self._sums.flatten(0, 1), self._point_buffer.shape[0]
        for rows, targets, sources in zip(
            reassignments.rows.split(chunk_rows),
            target_keys.split(chunk_rows),
            source_keys.split(chunk_rows),
            strict=True,
        ):
            moved = self._cast(torch.index_select(points, 0, rows, out=self._point_buffer[: rows.numel()]))
            sums.index_add_(0, targets, moved)
            if was_assigned:
                sums.index_add_(0, sources, moved, alpha=-1)

    def _add_unassigned(self, points: Tensor, labels: Tensor) -> None:
        """Add `points`, which were nowhere before, to the clusters that `labels` name."""
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

    def build_cluster_sums(self, indices: list[slice], bounds: AssignmentBounds | None) -> ClusterSums:
        """Return what is known once the points at the places `seen` were compared with all centers."""
        sums, counts = all_reduce_sum(self._sums), all_reduce_sum(self._counts)
        sums.masked_fill_(counts.unsqueeze(2) == 0, 0)  # and not what rounding left of points that came and went
        moved = int(all_reduce_sum(torch.tensor(self._moved_count, device=counts.device)))
        return ClusterSums(sums, counts, self._gather_labels(indices), moved / max(1, self.labels.numel()), bounds)

    def _gather_labels(self, indices: list[slice]) -> Tensor:
        """Return the labels of all points, whichever process assigned them."""
        if current_shard() == SINGLE_SHARD:
            return self.labels
        labels = torch.zeros_like(self.labels, dtype=torch.int32)  # the least that processes can add up
        for index in indices:
            labels[:, index] = self.labels[:, index]
        return all_reduce_sum(labels).to(self.labels)
