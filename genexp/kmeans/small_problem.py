"""Assignment step of Lloyd's algorithm for few points, as one NumPy matrix product.

For small arrays, a NumPy call takes a fraction of the time of a torch call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genexp.kmeans.blocks import Blocks
from genexp.kmeans.cluster_sums import ClusterSums, get_label_dtype
from genexp.sharding import SINGLE_SHARD, current_shard

MAX_SCORES = 2**13  # scores (starts · clusters · points), at most
MAX_ELEMENTS = 2**14  # elements (points · features), at most


@dataclass(frozen=True)
class PointMatrix:
    """All points in one matrix, kept so that the next assignment need not gather them."""

    homogeneous_points: np.ndarray  # float64 (features + 1, points): the last row is 1

    @classmethod
    def from_blocks(cls, blocks: Blocks) -> PointMatrix:
        """Return the points of all `blocks` in one matrix."""
        arrays = [block.numpy() for block in blocks]
        homogeneous_points = np.ones((arrays[0].shape[1] + 1, sum(map(len, arrays))))
        np.concatenate(arrays, out=homogeneous_points[:-1].T)
        return cls(homogeneous_points)

    def invalidate(self, start_indices: Tensor, point_indices: Tensor) -> None:
        """Do nothing: the points do not depend on labels."""

    def select_starts(self, start_indices: Tensor) -> PointMatrix:
        """Return self: the starts share the points."""
        return self


def is_small_problem(centers: Tensor, num_points: int) -> bool:
    """Return whether the overhead of calls dominates: few points, on the CPU, in a single process.

    `centers` is (starts, clusters, features), `num_points` the number of points.
    """
    starts, clusters, features = centers.shape
    is_small = num_points * starts * clusters <= MAX_SCORES and num_points * features <= MAX_ELEMENTS
    return is_small and centers.device.type == "cpu" and current_shard() == SINGLE_SHARD


def assign_small(blocks: Blocks, centers: Tensor, previous: ClusterSums | None) -> ClusterSums:
    """Assign each point to its nearest center. Take the points from `previous` if it holds them."""
    matrix = (
        previous.bounds
        if previous is not None and isinstance(previous.bounds, PointMatrix)
        else PointMatrix.from_blocks(blocks)
    )
    return _SmallAssignment.compute(matrix, centers.numpy()).to_cluster_sums(matrix)


def fit_small(blocks: Blocks, centers: Tensor, remaining_iterations: int) -> tuple[Tensor, ClusterSums, int]:
    """Assign all points, and run Lloyd's algorithm until a cluster is empty, or `remaining_iterations` are done.

    Returns the centers, their cluster sums and the number of iterations left, which is 0 once no center moves.
    """
    matrix, current_centers = PointMatrix.from_blocks(blocks), centers.numpy()
    assignment = _SmallAssignment.compute(matrix, current_centers)
    while remaining_iterations and assignment.counts.all():
        means = assignment.means(current_centers.dtype)
        if means.tobytes() == current_centers.tobytes():
            remaining_iterations = 0
        else:
            assignment, current_centers, remaining_iterations = (
                _SmallAssignment.compute(matrix, means),
                means,
                remaining_iterations - 1,
            )
    return torch.from_numpy(current_centers), assignment.to_cluster_sums(matrix), remaining_iterations


class _SmallAssignment(NamedTuple):  # created in half the time of a frozen dataclass
    """Assignment of all points to their nearest centers."""

    membership: np.ndarray  # float64 (starts, clusters, points): 1 for the points of a cluster, else 0
    sums: np.ndarray  # float64 (starts, clusters, features + 1): sums of the points; the last column counts them

    @classmethod
    def compute(cls, matrix: PointMatrix, centers: np.ndarray) -> _SmallAssignment:
        starts, clusters, features = centers.shape
        weights = np.empty((starts * clusters, features + 1))
        rows = weights[:, :-1]
        rows[:] = centers.reshape(-1, features)
        weights[:, -1] = (rows * rows) @ np.full(features, -0.5)
        # Negated scores: the nearest center has the greatest.
        negated_scores = np.dot(weights, matrix.homogeneous_points).reshape(starts, clusters, -1)
        membership = (negated_scores == negated_scores.max(1, keepdims=True)).astype(np.float64)
        sums = membership @ matrix.homogeneous_points.T
        # A point with several nearest centers is counted once for each. It then goes to the first of them.
        if sums[..., -1].sum() != starts * matrix.homogeneous_points.shape[1]:
            membership = np.eye(clusters)[negated_scores.argmax(1)].swapaxes(1, 2)
            sums = membership @ matrix.homogeneous_points.T
        return cls(membership, sums)

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
            torch.from_numpy(np.arange(clusters) @ self.membership).to(get_label_dtype(clusters)),
            bounds=matrix,
        )
