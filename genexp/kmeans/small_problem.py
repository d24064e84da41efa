"""Nearest centers of few points, all in one product: a short call of numpy takes a fraction of one of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genexp.kmeans.blocks import Blocks
from genexp.kmeans.cluster_sums import ClusterSums, label_dtype
from genexp.sharding import SINGLE_SHARD, current_shard

MAX_SCORES = 2**13  # distances: so many at most
MAX_ELEMENTS = 2**14  # of points


@dataclass(frozen=True)
class PointMatrix:
    """All points at hand, which spares gathering them for the next centers."""

    values: np.ndarray  # float64 (features + 1, points): the last feature is 1

    @classmethod
    def from_blocks(cls, blocks: Blocks) -> PointMatrix:
        """Return the points in `blocks`."""
        arrays = [block.numpy() for block in blocks]
        features = np.ones((arrays[0].shape[1] + 1, sum(map(len, arrays))))
        np.concatenate(arrays, out=features[:-1].T)
        return cls(features)

    def invalidate(self, starts: Tensor, points: Tensor) -> None:
        """Nothing concerns clusters."""

    def select_starts(self, starts: Tensor) -> PointMatrix:
        """Return itself: starts share the points."""
        return self


def is_small_problem(centers: Tensor, count: int) -> bool:
    """Return whether there is so little to compute that the calls themselves take the time."""
    starts, clusters, features = centers.shape
    is_small = count * starts * clusters <= MAX_SCORES and count * features <= MAX_ELEMENTS
    return is_small and centers.device.type == "cpu" and current_shard() == SINGLE_SHARD


def assign_small(blocks: Blocks, centers: Tensor, previous: ClusterSums | None) -> ClusterSums:
    """Assign each point to its nearest center. What is `known` of centers before spares gathering the points."""
    matrix = (
        previous.bounds
        if previous is not None and isinstance(previous.bounds, PointMatrix)
        else PointMatrix.from_blocks(blocks)
    )
    return _SmallAssignment.compute(matrix, centers.numpy()).to_cluster_sums(matrix)


def fit_small(blocks: Blocks, centers: Tensor, max_iter: int) -> tuple[Tensor, ClusterSums, int]:
    """Assign all points, and do up to so many iterations, until one leaves a cluster empty.

    Returns the centers, their totals, and how many iterations are left to do: none once centers stay.
    """
    matrix, current_centers = PointMatrix.from_blocks(blocks), centers.numpy()
    assignment = _SmallAssignment.compute(matrix, current_centers)
    while max_iter and assignment.counts.all():
        means = assignment.means(current_centers.dtype)
        if means.tobytes() == current_centers.tobytes():
            max_iter = 0
        else:
            assignment, current_centers, max_iter = _SmallAssignment.compute(matrix, means), means, max_iter - 1
    return torch.from_numpy(current_centers), assignment.to_cluster_sums(matrix), max_iter


class _SmallAssignment(NamedTuple):  # made in half the time of a frozen dataclass
    """Points with their nearest centers."""

    membership: np.ndarray  # float64 (starts, clusters, points): 1 for a cluster's points, else 0
    sums: np.ndarray  # float64 (starts, clusters, features + 1) of the clusters' points, and these counted

    @classmethod
    def compute(cls, matrix: PointMatrix, centers: np.ndarray) -> _SmallAssignment:
        starts, clusters, features = centers.shape
        weights = np.empty((starts * clusters, features + 1))
        rows = weights[:, :-1]
        rows[:] = centers.reshape(-1, features)
        weights[:, -1] = (rows * rows) @ np.full(features, -0.5)
        scores = np.dot(weights, matrix.values).reshape(starts, clusters, -1)  # the greater, the nearer
        members = (scores == scores.max(1, keepdims=True)).astype(np.float64)
        sums = members @ matrix.values.T
        if sums[..., -1].sum() != starts * matrix.values.shape[1]:  # a point is as near to another center:
            members = np.eye(clusters)[scores.argmax(1)].swapaxes(1, 2)  # it goes to the first
            sums = members @ matrix.values.T
        return cls(members, sums)

    @property
    def counts(self) -> np.ndarray:
        return self.sums[..., -1]

    def means(self, dtype: np.dtype) -> np.ndarray:
        """Return the means (starts, clusters, features) of clusters that all have points."""
        return (self.sums[..., :-1] / self.sums[..., -1:]).astype(dtype)

    def to_cluster_sums(self, matrix: PointMatrix) -> ClusterSums:
        clusters = self.membership.shape[1]
        return ClusterSums(
            torch.from_numpy(np.ascontiguousarray(self.sums[..., :-1])),
            torch.from_numpy(self.counts.astype(np.int64)),
            torch.from_numpy(np.arange(clusters) @ self.membership).to(label_dtype(clusters)),
            bounds=matrix,
        )
