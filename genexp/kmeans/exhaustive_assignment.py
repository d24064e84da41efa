"""Assignment step of Lloyd's algorithm by matrix products with all centers, with the bounds of Hamerly (2010).

Points that provably stay in their cluster are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genexp.kmeans.blocks import CHUNK_ELEMENTS, get_chunk_size
from genexp.kmeans.cluster_sums import UNASSIGNED, ClusterSums, ClusterSumsUpdater, Reassignments
from genexp.kmeans.distances import CenterScorer, argmin_rows
from genexp.kmeans.hamerly_bounds import HamerlyBounds, center_shift_norms

# Pairs of points and their indices in the data set. The points are valid until the next pair is requested.
PointChunks = Iterator[tuple[Tensor, Tensor]]
# Fraction of a block. If more points are uncertain, the whole block is computed: cheaper than gathering.
MAX_GATHERED_FRACTION = 0.6
# Fraction of the rows of scores. Above it all rows are searched: less memory than a copy, and hardly slower.
MAX_COPIED_FRACTION = 0.1
CHUNK_SCORES = 2**19  # scores computed at a time on the CPU: they fit in its cache
BUFFER_ELEMENTS = 2**18  # elements of points that are gathered before their scores are computed


class PointBuffer:
    """Buffer that gathers points of several blocks into chunks of `capacity` points."""

    def __init__(self, capacity: int, features: int, like: Tensor) -> None:
        self._points = like.new_empty(capacity, features)
        self._indices: list[Tensor] = []
        self._size = 0

    def add(self, block: Tensor, rows: Tensor, indices: Tensor) -> PointChunks:
        """Append the `rows` of `block`, which have the indices `indices`: both int64 (points,).

        Yield a chunk each time the buffer is full.
        """
        while len(rows):
            count = min(len(rows), len(self._points) - self._size)
            end = self._size + count
            torch.index_select(block, 0, rows[:count], out=self._points[self._size : end])
            self._indices.append(indices[:count])
            self._size, rows, indices = end, rows[count:], indices[count:]
            if end == len(self._points):
                yield from self.flush()

    def flush(self) -> PointChunks:
        """Yield the points that are left, and empty the buffer."""
        if self._size:
            yield self._points[: self._size], torch.cat(self._indices)
        self._size, self._indices = 0, []


class ExhaustiveAssignment:
    """Assignment of points to `centers` (starts, clusters, features), which records its changes in `updater`.

    `previous` is the assignment to `old_centers`, or to none.
    """

    def __init__(
        self, centers: Tensor, previous: ClusterSums, old_centers: Tensor | None, updater: ClusterSumsUpdater
    ) -> None:
        self._updater = updater
        self._center_scores = CenterScorer(centers)
        self._max_squared_norms = centers.square().sum(2).amax(1)  # (starts,)
        starts, clusters, features = centers.shape
        self._chunk_size = min(
            get_chunk_size(CHUNK_SCORES, starts * clusters, centers),
            get_chunk_size(CHUNK_ELEMENTS, features, centers),
        )
        # All chunks share one buffer of scores: new allocations would fragment memory.
        self._scores = centers.new_empty(self._chunk_size, starts * clusters)
        self.bounds = previous.bounds if isinstance(previous.bounds, HamerlyBounds) else None
        self._center_shift_norms: Tensor | None = None  # (starts, clusters), if there are bounds for `old_centers`
        if self.bounds is None and HamerlyBounds.is_worthwhile(previous.changed_fraction):
            self.bounds = HamerlyBounds.allocate(centers, updater.labels.shape[1])
        elif self.bounds is not None and old_centers is not None:
            self._center_shift_norms = center_shift_norms(old_centers, centers)
        self._buffer = PointBuffer(get_chunk_size(BUFFER_ELEMENTS, features, centers), features, centers)

    def assign_block(self, block: Tensor, point_slice: slice) -> None:
        """Assign the points of `block`, those in `point_slice`. Some wait in the buffer until `finish`."""
        rows = self._find_uncertain(point_slice)
        if rows is None or len(rows) > MAX_GATHERED_FRACTION * len(block):
            self._assign_points(block, point_slice)
        else:
            for points, indices in self._buffer.add(block, rows, rows + point_slice.start):
                self._assign_points(points, indices)

    def finish(self) -> None:
        """Assign the points that are left in the buffer."""
        for points, indices in self._buffer.flush():
            self._assign_points(points, indices)

    def _find_uncertain(self, index: slice) -> Tensor | None:
        """Return the rows in the block `index` whose points may change cluster: int64 (rows,), or None for all."""
        if self._center_shift_norms is None or self.bounds is None:
            return None
        return self.bounds.select(index).shift_bounds(self._center_shift_norms, self._updater.labels[:, index])

    def _assign_points(self, points: Tensor, index: slice | Tensor) -> None:
        """Assign `points` (points, features), which have the indices `index`. Update their labels and bounds."""
        labels, bounds = self._updater.labels[:, index], None if self.bounds is None else self.bounds.select(index)
        for first in range(0, len(points), self._chunk_size):
            chunk = slice(first, first + self._chunk_size)
            self._assign_chunk(points[chunk], labels[:, chunk], None if bounds is None else bounds.select(chunk))
        if isinstance(index, Tensor):
            self._updater.labels.index_copy_(1, index, labels)
            if self.bounds is not None and bounds is not None:
                self.bounds.put(index, bounds)

    def _assign_chunk(self, points: Tensor, labels: Tensor, bounds: HamerlyBounds | None) -> None:
        scores = self._center_scores(points, self._scores)  # (points, starts, clusters)
        self._updater.reassign(points, labels, self._find_reassignments(scores, labels.T.long()))
        if bounds is not None:
            # Norms are computed again. To store them would take as much memory as the margins.
            bounds.set_from_scores(
                scores, labels, torch.linalg.vector_norm(points, dim=1).square_(), self._max_squared_norms
            )

    def _find_reassignments(self, scores: Tensor, old_labels: Tensor) -> Reassignments:
        """Return the points whose nearest center differs from `old_labels` (points, starts).

        `scores` is (points, starts, clusters).
        """
        row_scores = scores.flatten(0, 1)  # one row per point and start
        if len(old_labels) and old_labels[0, 0] == UNASSIGNED:  # no point of the block has a cluster yet
            keys, new_clusters = torch.arange(len(row_scores), device=scores.device), argmin_rows(row_scores)
        else:  # a minimum takes less time than its index, and most labels stay
            has_moved = row_scores.amin(1) < row_scores.gather(1, old_labels.reshape(-1, 1)).squeeze(1)
            keys = has_moved.nonzero().squeeze(1)
            should_scan_all = len(keys) > MAX_COPIED_FRACTION * len(row_scores)
            new_clusters = (
                argmin_rows(row_scores)[keys] if should_scan_all else argmin_rows(row_scores.index_select(0, keys))
            )
        return Reassignments(keys // old_labels.shape[1], keys % old_labels.shape[1], new_clusters)
