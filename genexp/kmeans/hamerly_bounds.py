"""Assignment step of Lloyd's algorithm with the bounds of Hamerly (2010), and without bounds.

The algorithm keeps two bounds for each point: an upper bound on the distance to the center of its cluster (its own
center), and a lower bound on the distance to any other center. The margin stored here is the lower bound minus the
upper bound. A point with a positive margin stays in its cluster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.kmeans.blocks import map_rows
from genexp.kmeans.distances import RELATIVE_ROUNDING, CenterScorer, NearestCenters

# If a larger fraction of a block may change cluster, computing the whole block is faster than gathering them.
MAX_GATHERED_FRACTION = 0.6
FLOAT32_EPSILON = 2**-23  # machine epsilon: more than the relative error of one operation


class ExhaustiveAssignment:
    """Assignment that compares each point with all centers."""

    def move_centers(self, centers: Tensor, labels: Tensor) -> None:
        """Set the centers (starts, clusters, features) of the next pass over all points.

        `labels` (starts, points) is the assignment to the previous centers.
        """
        self._scorer = CenterScorer(centers)

    def find_nearest(self, points: Tensor, first: int, labels: Tensor) -> Tensor:
        """Return the nearest centers of points (points, features), in the shape and dtype of `labels`.

        `first` is the index of the first point in the data set. `labels` (starts, points) are their old clusters.
        """
        nearest = labels.clone()
        map_rows(
            lambda rows: self._assign(points[rows], first + rows.start, nearest[:, rows]),
            len(points),
            points.device,
        )
        return nearest

    def _assign(self, points: Tensor, first: int, labels: Tensor) -> None:
        """Replace `labels` by the nearest centers. Several threads call this for different points."""
        size = self._scorer.chunk_size
        for chunk, chunk_labels in zip(points.split(size), labels.split(size, 1), strict=True):
            chunk_labels.copy_(self._scorer.find_nearest(chunk).labels.T)

    def select_starts(self, start_indices: Tensor) -> None:
        """Keep the data of `start_indices` only: int64 indices (starts,)."""


class HamerlyBounds(ExhaustiveAssignment):
    """Assignment that skips the points whose margin is positive.

    Bounds change no result: with them and without them, the labels are the same.
    """

    def __init__(self, centers: Tensor, num_points: int) -> None:
        # (points, starts), in units of distance
        self._margins = centers.new_full((num_points, len(centers)), -torch.inf)
        self._squared_norms = centers.new_empty(num_points)
        # (starts, clusters, features) and (starts, points): of the last pass, none before the first one
        self._centers: Tensor | None = None
        self._labels: Tensor | None = None
        self._is_first_pass = True

    def move_centers(self, centers: Tensor, labels: Tensor) -> None:
        """Set the centers (starts, clusters, features) of the next pass, and update the bounds by their movement.

        The bounds of points whose label in `labels` (starts, points) differs from that of the last pass are
        discarded.
        """
        super().move_centers(centers, labels)
        self._is_first_pass = self._centers is None
        if self._centers is not None and self._labels is not None:
            if not torch.equal(labels, self._labels):
                self._discard_bounds((labels != self._labels).T)
            self._loosen_bounds(centers - self._centers, labels)
        self._centers, self._labels = centers, labels.clone()

    def _discard_bounds(self, mask: Tensor) -> None:
        """Discard the bounds of the pairs of point and start in `mask`: bool (points, starts)."""
        self._margins.masked_fill_(mask, -torch.inf)

    def find_nearest(self, points: Tensor, first: int, labels: Tensor) -> Tensor:
        """Return the nearest centers of points, as `ExhaustiveAssignment.find_nearest` does."""
        nearest = super().find_nearest(points, first, labels)
        assert self._labels is not None
        self._labels[:, first : first + len(points)] = nearest
        return nearest

    def _loosen_bounds(self, shifts: Tensor, labels: Tensor) -> None:
        """Decrease the margins after centers moved by `shifts` (starts, clusters, features)."""
        self._margins.mul_(1 - FLOAT32_EPSILON)
        norms = torch.linalg.vector_norm(shifts, dim=2).mul_(1 + 1e-5)
        for margins, start_labels, start_norms in zip(self._margins.unbind(1), labels, norms, strict=True):
            # In the worst case, the own center moved away from the point, and the fastest other center toward it.
            fastest = start_norms.topk(min(2, len(start_norms)))
            other_norms = fastest.values[0].repeat(len(start_norms))
            other_norms[fastest.indices[0]] = fastest.values[-1]
            margins.sub_((start_norms + other_norms).index_select(0, start_labels.int()))

    def _assign(self, points: Tensor, first: int, labels: Tensor) -> None:
        rows = self._find_uncertain_rows(first, len(points))
        size = self._scorer.chunk_size
        if len(rows) > MAX_GATHERED_FRACTION * len(points):
            for begin in range(0, len(points), size):
                chunk = points[begin : begin + size]
                self._compare_with_all(chunk, torch.arange(begin, begin + len(chunk)), first, labels)
        else:
            for some_rows in rows.split(size):
                self._compare_with_all(points.index_select(0, some_rows), some_rows, first, labels)

    def _find_uncertain_rows(self, first: int, num_points: int) -> Tensor:
        """Return which of the points from `first` on may change cluster in any start: int64 (rows,)."""
        return (self._margins[first : first + num_points] <= 0).any(1).nonzero().squeeze(1)

    def _compare_with_all(self, points: Tensor, rows: Tensor, first: int, labels: Tensor) -> NearestCenters:
        """Compare `points` with all centers, and set their bounds and their columns `rows` of `labels`.

        `rows` count from `first`, an index of the data set.
        """
        indices = rows + first
        if self._is_first_pass:
            self._squared_norms[indices] = torch.linalg.vector_norm(points, dim=1).square_()
        squared_norms = self._squared_norms[indices]
        found = self._scorer.find_nearest(points, squared_norms)
        labels.index_copy_(1, rows, found.labels.T.to(labels.dtype))
        margins = self._compute_margins(found.own_scores, found.other_scores, squared_norms.unsqueeze(1))
        self._margins.index_copy_(0, indices, margins)
        return found

    def _compute_margins(self, own_scores: Tensor, other_scores: Tensor, squared_norms: Tensor) -> Tensor:
        """Return margins from upper bounds `own_scores` and lower bounds `other_scores`, in their shape.

        `squared_norms` are those of the points, in the same shape or broadcast to it.
        """
        rounding = RELATIVE_ROUNDING * (squared_norms + self._scorer.max_squared_norm)
        own_distances = _distances_from_scores(own_scores, squared_norms + rounding)
        return _distances_from_scores(other_scores, squared_norms - rounding).sub_(own_distances)

    def select_starts(self, start_indices: Tensor) -> None:
        """Keep the bounds of `start_indices` only: int64 indices (starts,)."""
        self._margins = self._margins[:, start_indices]
        if self._centers is not None and self._labels is not None:
            self._centers, self._labels = self._centers[start_indices], self._labels[start_indices]


def _distances_from_scores(scores: Tensor, squared_norms: Tensor) -> Tensor:
    """Return distances from scores and the squared norms of the points, in the shape of `scores`."""
    return (2 * scores).add_(squared_norms).clamp_(min=0).sqrt_()
