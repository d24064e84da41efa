"""What is known of the points, brought from some centres to the next in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.kmeans.blocks import at_once
from genexp.kmeans.hints import Hints
from genexp.kmeans.totals import NOWHERE, Totals
from genexp.sharding import SINGLE_SHARD, current_shard, all_reduce_sum

FEATURES = 2**17  # of points that change their cluster, which are copied, so many at a time


@dataclass(frozen=True)
class Moves:
    """Points that go to another cluster."""

    rows: Tensor  # int64 (moves,) which point
    starts: Tensor  # in which start
    to: Tensor  # the cluster


class Update:
    """Follows points that move, with the sums, the counts and the labels that were `known`."""

    def __init__(self, known: Totals, centres: Tensor) -> None:
        self._sums, self._counts, self.labels = known.sums, known.counts, known.labels
        if current_shard().index:  # the sums of all parts are added up in the end: one of them has what is known
            self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        self._moved = 0
        # Points are copied to the same place, part by part: memory stays in one piece.
        shape = at_once(FEATURES, centres.shape[2], centres), centres.shape[2]
        self._picked, self._room = centres.new_empty(shape), known.sums.new_empty(shape)

    def move(self, points: Tensor, labels: Tensor, moves: Moves) -> None:
        """Let some of `points`, which have `labels` (starts, points), go from their clusters to others."""
        clusters = self._counts.shape[1]
        origin = labels[moves.starts, moves.rows].long()
        labels[moves.starts, moves.rows] = moves.to.to(labels)
        self._moved += len(moves.rows)
        placed = bool((origin != NOWHERE).all())
        if not placed and len(origin) == labels.numel():
            self._place(points, labels)
            return
        arrive, leave = moves.starts * clusters + moves.to, moves.starts * clusters + origin
        self._count(arrive, 1)
        if placed:
            self._count(leave, -1)
        sums, room = self._sums.flatten(0, 1), self._picked.shape[0]
        for rows, to, away in zip(moves.rows.split(room), arrive.split(room), leave.split(room), strict=True):
            moved = self._wide(torch.index_select(points, 0, rows, out=self._picked[: rows.numel()]))
            sums.index_add_(0, to, moved)
            if placed:
                sums.index_add_(0, away, moved, alpha=-1)

    def _place(self, points: Tensor, labels: Tensor) -> None:
        """Add `points`, which were nowhere before, to the clusters that `labels` name."""
        starts, clusters = self._counts.shape
        first = torch.arange(0, starts * clusters, clusters, device=labels.device).unsqueeze(1)
        places = labels.long() + first  # (starts, points)
        self._count(places.flatten(), 1)
        sums = self._sums.flatten(0, 1)
        parts = zip(points.split(len(self._room)), places.split(len(self._room), 1), strict=True)
        for some, to in parts:
            wide = self._wide(some)
            for of_start in to:
                sums.index_add_(0, of_start, wide)

    def _wide(self, points: Tensor) -> Tensor:
        return self._room[: points.shape[0]].copy_(points)

    def _count(self, places: Tensor, sign: int) -> None:
        self._counts += sign * places.bincount(minlength=self._counts.numel()).view_as(self._counts)

    def totals(self, seen: list[slice], hints: Hints | None) -> Totals:
        """Return what is known once the points at the places `seen` were compared with all centres."""
        sums, counts = all_reduce_sum(self._sums), all_reduce_sum(self._counts)
        sums.masked_fill_(counts.unsqueeze(2) == 0, 0)  # and not what rounding left of points that came and went
        moved = int(all_reduce_sum(torch.tensor(self._moved, device=counts.device)))
        return Totals(sums, counts, self._all_labels(seen), moved / max(1, self.labels.numel()), hints)

    def _all_labels(self, seen: list[slice]) -> Tensor:
        """Return the labels of all points, whichever process assigned them."""
        if current_shard() == SINGLE_SHARD:
            return self.labels
        labels = torch.zeros_like(self.labels, dtype=torch.int32)  # the least that processes can add up
        for place in seen:
            labels[:, place] = self.labels[:, place]
        return all_reduce_sum(labels).to(self.labels)
