"""Nearest centres by matrix products with all of them, for the points that may have another than before."""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.kmeans.blocks import FEATURES, at_once
from genexp.kmeans.cluster_sums import Moves, Update
from genexp.kmeans.distances import Distances, least
from genexp.kmeans.hamerly_bounds import Bounds, moves
from genexp.kmeans.point_buffer import PointBuffer
from genexp.kmeans.totals import NOWHERE, Totals

MOST = 0.6  # of a block must be compared: it is cheaper to compare it whole than to gather that much
COPIED = 0.1  # of the distances: it takes less memory, and hardly longer, to search all than to pick more
SCORES = 2**19  # distances that are computed at a time: so many stay in the processor's cache
GATHERED = 2**18  # features of points that are gathered before they are compared


class Comparing:
    """Compares points with `centres`, and tells `update` which of them move."""

    def __init__(self, centres: Tensor, known: Totals, before: Tensor | None, update: Update) -> None:
        self._update = update
        self._distances = Distances(centres)
        self._largest = centres.square().sum(2).amax(1)  # (starts,)
        starts, clusters, features = centres.shape
        self._chunk = min(at_once(SCORES, starts * clusters, centres), at_once(FEATURES, features, centres))
        # Scores are written to the same place: memory stays in one piece.
        self._scores = centres.new_empty(self._chunk, starts * clusters)
        self.hints = known.hints if isinstance(known.hints, Bounds) else None
        self._moves: Tensor | None = None  # of the centres, if bounds know of those before
        if self.hints is None and Bounds.pay(known.changed):
            self.hints = Bounds.unknown(centres, update.labels.shape[1])
        elif self.hints is not None and before is not None:
            self._moves = moves(before, centres)
        self._gathered = PointBuffer(at_once(GATHERED, features, centres), features, centres)

    def add(self, block: Tensor, place: slice) -> None:
        """Assign the points of `block`, which are those at `place`; some only when all blocks were added."""
        rows = self._to_compare(place)
        if rows is None or len(rows) > MOST * len(block):
            self._assign(block, place)
        else:
            for points, places in self._gathered.add(block, rows, rows + place.start):
                self._assign(points, places)

    def finish(self) -> None:
        """Assign the points that were gathered."""
        for points, places in self._gathered.rest():
            self._assign(points, places)

    def _to_compare(self, place: slice) -> Tensor | None:
        """Return which of the points at `place` must be compared; None: all."""
        if self._moves is None or self.hints is None:
            return None
        return self.hints.at(place).loosen(self._moves, self._update.labels[:, place])

    def _assign(self, points: Tensor, place: slice | Tensor) -> None:
        """Note the nearest centre of each point at `place`, and what spares comparisons with the others."""
        labels, bounds = self._update.labels[:, place], None if self.hints is None else self.hints.at(place)
        for first in range(0, len(points), self._chunk):
            some = slice(first, first + self._chunk)
            self._compare(points[some], labels[:, some], None if bounds is None else bounds.at(some))
        if isinstance(place, Tensor):
            self._update.labels.index_copy_(1, place, labels)
            if self.hints is not None and bounds is not None:
                self.hints.put(place, bounds)

    def _compare(self, points: Tensor, labels: Tensor, bounds: Bounds | None) -> None:
        scores = self._distances(points, self._scores)  # (points, starts, clusters)
        self._update.move(points, labels, self._moves_to_nearest(scores, labels.T.long()))
        if bounds is not None:  # norms are computed anew: kept, they would take as much memory as the margins
            bounds.measure(scores, labels, torch.linalg.vector_norm(points, dim=1).square_(), self._largest)

    def _moves_to_nearest(self, scores: Tensor, known: Tensor) -> Moves:
        """Return which points move to the nearest centre, by their scores, from those `known` (points, starts)."""
        clusters = scores.flatten(0, 1)  # of a point and a start in each row
        if len(known) and known[0, 0] == NOWHERE:  # then no point was assigned yet
            keys, to = torch.arange(len(clusters), device=scores.device), least(clusters)
        else:  # the least is found sooner than its place, which is mostly known
            closer = clusters.amin(1) < clusters.gather(1, known.reshape(-1, 1)).squeeze(1)
            keys = closer.nonzero().squeeze(1)
            many = len(keys) > COPIED * len(clusters)
            to = least(clusters)[keys] if many else least(clusters.index_select(0, keys))
        return Moves(keys // known.shape[1], keys % known.shape[1], to)
