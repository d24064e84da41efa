"""Lloyd's iteration for several starts at once (Lloyd 1982).

Centres are (starts, clusters, features) throughout: the starts differ in their centres and share the points.
Only what changes is computed: a point that stays in its cluster leaves the sums as they are, and once few points
move, those that provably stay are not compared with any centre (Hamerly 2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.clustering.blocks import Blocks, take
from genexp.whole_batch import ALL, here, total

NOWHERE = -1  # the cluster of a point that has none yet
FEW = 0.05  # of the points changed their cluster in the pass before: bounds are worth their price
MOST = 0.6  # of a block must be compared: it is cheaper to compare it whole than to gather that much
SCORES = 2**20  # distances that are computed at a time: so many stay in the processor's cache
MOVED = 2**18  # features of points that change their cluster, which are copied, so many at a time
ROUNDING = 4e-6  # of the squared norms involved: how far a squared distance may be off in float32


@dataclass(frozen=True)
class Totals:
    """What is known of the points with respect to some centres."""

    sums: Tensor  # float64 (starts, clusters, features) of the points nearest to each centre
    counts: Tensor  # int64 (starts, clusters)
    labels: Tensor  # int32 (starts, points): the nearest centre of each point
    changed: float = 1.0  # part of the labels that differ from those of the centres before
    slack: Tensor | None = None  # (starts, points): the second nearest centre is at least so much farther

    @classmethod
    def nothing(cls, centres: Tensor, count: int) -> Totals:
        """Return what is known of `count` points that were never assigned."""
        starts, clusters, _ = centres.shape
        return cls(
            torch.zeros_like(centres, dtype=wide(centres)),
            torch.zeros(starts, clusters, dtype=torch.long, device=centres.device),
            torch.full((starts, count), NOWHERE, dtype=torch.int32, device=centres.device),
        )

    def means(self, otherwise: Tensor) -> Tensor:
        """Return the mean of each cluster; where it has no points, `otherwise`."""
        counts = self.counts.unsqueeze(2)
        return torch.where(counts > 0, (self.sums / counts.clamp(min=1)).to(otherwise), otherwise)

    def energy(self, centres: Tensor) -> Tensor:
        """Return the inertia (starts,) of the points about `centres`, less the squared norms of all points."""
        rows = centres.to(self.sums)
        return (self.counts * rows.square().sum(2) - 2 * (rows * self.sums).sum(2)).sum(1)


def wide(tensor: Tensor) -> torch.dtype:
    """Return the type to sum in: points come and go, and what a sum loses by rounding it would never get back."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


class Distances:
    """The squared distances of points to fixed centres, each less the point's own squared norm, halved.

    What is left out is the same for all centres, so that one matrix product per block finds the nearest.
    """

    def __init__(self, centres: Tensor) -> None:
        self._shape = centres.shape[:2]
        self._rows = centres.flatten(0, 1)
        self._half_norms = self._rows.square().sum(1) / 2

    def __call__(self, points: Tensor) -> Tensor:
        """Return these for points (points, features): (points, starts, clusters)."""
        return torch.addmm(self._half_norms, points, self._rows.T, alpha=-1).unflatten(1, self._shape)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the nearest of centres (clusters, features) for each point: int64 (points,)."""
    return Distances(centres.unsqueeze(0))(points).squeeze(1).argmin(1)


def tally(blocks: Blocks, centres: Tensor, count: int) -> Totals:
    """Assign each of `count` points to its nearest centre."""
    return _pass(blocks, centres, Totals.nothing(centres, count), None)


def iterate(blocks: Blocks, centres: Tensor, totals: Totals) -> tuple[Tensor, Totals]:
    """Move `centres` to the means of their clusters, and assign all points anew.

    Takes the `totals` that belong to the centres, and turns them into those of the new centres: both are returned.
    """
    filled = refill(totals, centres, blocks)
    means = filled.means(centres)
    return means, _pass(blocks, means, filled, centres)


def fit(blocks: Blocks, count: int, centres: Tensor, iterations: int) -> Tensor:
    """Return the best of the starts, (clusters, features), after at most so many iterations."""
    totals = tally(blocks, centres, count)
    for _ in range(iterations):
        before = centres
        centres, totals = iterate(blocks, before, totals)
        if torch.equal(centres, before):
            break
    return centres[totals.energy(centres).argmin()]


def _pass(blocks: Blocks, centres: Tensor, known: Totals, before: Tensor | None) -> Totals:
    """Return the totals of `centres`, into which those that are `known` of the centres `before` are turned."""
    update = _Update(centres, known, before)
    first = 0
    for block in blocks:
        mine = here().rows(len(block))  # other processes may assign the others
        update.add(block[mine], slice(first + mine.start, first + mine.stop))
        first += len(block)
    return update.totals()


class _Update:
    """Brings totals from one set of centres to the next in place, block by block."""

    def __init__(self, centres: Tensor, known: Totals, before: Tensor | None) -> None:
        self._distances = Distances(centres)
        self._largest = centres.square().sum(2).amax(1)  # (starts,)
        self._sums, self._counts, self._labels, self._slack = known.sums, known.counts, known.labels, known.slack
        if here().index:  # the sums of all parts are added up in the end: one of them has what is known
            self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        self._seen: list[slice] = []
        self._chunk = max(1, SCORES // self._counts.numel())
        self._new = 0
        # A bound says how far the second nearest is; it shrinks by as much as centres moved.
        self._drift = None if self._slack is None or before is None else _drift(before, centres)
        if self._slack is None and known.changed < FEW:
            self._slack = torch.full_like(known.labels, -1, dtype=centres.dtype)

    def totals(self) -> Totals:
        """Return what is known once all blocks were added."""
        sums, counts = total(self._sums), total(self._counts)
        sums.masked_fill_(counts.unsqueeze(2) == 0, 0)  # and not what rounding left of points that came and went
        new = int(total(torch.tensor(self._new, device=counts.device)))
        return Totals(sums, counts, self._all_labels(), new / max(1, self._labels.numel()), self._slack)

    def _all_labels(self) -> Tensor:
        """Return the labels of all points, whichever process assigned them."""
        if here() == ALL:
            return self._labels
        labels = torch.zeros_like(self._labels)
        for seen in self._seen:
            labels[:, seen] = self._labels[:, seen]
        return total(labels)

    def add(self, block: Tensor, place: slice) -> None:
        """Assign the points of `block`, which are those at `place`."""
        self._seen.append(place)
        labels = self._labels[:, place]  # (starts, points)
        if self._slack is None:
            self._assign(block, labels, None)
            return
        slack = self._slack[:, place]
        if self._drift is not None:
            slack -= self._drift.gather(1, labels.long())
        rows = (slack < 0).any(0).nonzero().squeeze(1)
        if len(rows) > MOST * len(block):
            self._assign(block, labels, slack)
        elif len(rows):
            some, room = labels.index_select(1, rows), slack.index_select(1, rows)
            self._assign(block.index_select(0, rows), some, room)
            labels.index_copy_(1, rows, some)
            slack.index_copy_(1, rows, room)

    def _assign(self, block: Tensor, labels: Tensor, slack: Tensor | None) -> None:
        """Write the nearest centre of each point to `labels`, and what the second nearest leaves to `slack`."""
        for first in range(0, len(block), self._chunk):
            some = slice(first, first + self._chunk)
            self._compare(block[some], labels[:, some], None if slack is None else slack[:, some])

    def _compare(self, points: Tensor, labels: Tensor, slack: Tensor | None) -> None:
        scores = self._distances(points)  # (points, starts, clusters)
        least, known = scores.amin(2), labels.T.long()
        # torch finds a minimum several times faster than its place, and the place is mostly known.
        closer = least < scores.gather(2, known.clamp(min=0).unsqueeze(2)).squeeze(2)
        rows, starts = (closer | (known == NOWHERE)).nonzero(as_tuple=True)
        if len(rows) > known.numel() / 2:
            self._move(points, labels, rows, starts, scores.argmin(2)[rows, starts])
        elif len(rows):
            self._move(points, labels, rows, starts, scores[rows, starts].argmin(1))
        if slack is not None:
            second = scores.scatter_(2, labels.T.long().unsqueeze(2), torch.inf).amin(2)
            slack.copy_(self._gap(points, least, second).T)

    def _move(self, points: Tensor, labels: Tensor, rows: Tensor, starts: Tensor, to: Tensor) -> None:
        """Let the points at `rows` leave their clusters for clusters `to`, in the start that each index is of."""
        clusters = self._counts.shape[1]
        origin = labels[starts, rows].long()
        labels[starts, rows] = to.to(labels)
        self._new += len(rows)
        placed = bool((origin != NOWHERE).all())
        arrive, leave = starts * clusters + to, starts * clusters + origin
        at_once = max(1, MOVED // points.shape[1])
        for first in range(0, len(rows), at_once):
            part = slice(first, first + at_once)
            moved = points.index_select(0, rows[part]).to(self._sums)
            self._add(arrive[part], moved, 1)
            if placed:
                self._add(leave[part], moved, -1)

    def _add(self, places: Tensor, points: Tensor, sign: int) -> None:
        self._sums.flatten(0, 1).index_add_(0, places, points, alpha=sign)
        self._counts.flatten().index_add_(0, places, torch.ones_like(places), alpha=sign)

    def _gap(self, points: Tensor, least: Tensor, second: Tensor) -> Tensor:
        """Return by how much the second nearest centre is farther at least, whatever the rounding."""
        norms = points.square().sum(1, keepdim=True)
        unsure = ROUNDING * (norms + self._largest)
        farthest = (2 * least + norms + unsure).clamp(min=0).sqrt()
        return (2 * second + norms - unsure).clamp(min=0).sqrt() - farthest


def _drift(before: Tensor, after: Tensor) -> Tensor:
    """Return (starts, clusters) by how much a bound shrinks: a centre's own move, and the largest of another."""
    moves = (after - before).square().sum(2).sqrt() * (1 + 1e-5)
    largest = moves.topk(min(2, moves.shape[1]), dim=1).values
    others = torch.where(moves == largest[:, :1], largest[:, -1:], largest[:, :1])
    return moves + others


def refill(totals: Totals, centres: Tensor, blocks: Blocks) -> Totals:
    """Give each empty cluster one of the points farthest from their centres, which its old cluster loses.

    This is scikit-learn's rule. It costs two passes, and nothing where no cluster is empty.
    """
    empty = totals.counts == 0
    most = int(empty.sum(1).max())
    if not most:
        return totals
    indices, found = _farthest(blocks, centres, most)  # (starts, most) each
    points = take(blocks, indices.flatten().cpu()).unflatten(0, indices.shape)
    takers = empty.byte().argsort(dim=1, descending=True, stable=True)[:, :most]  # the empty clusters first
    # A start may have fewer empty clusters than another, and a small batch fewer points than that.
    given = found & empty.gather(1, takers)
    start, place = given.nonzero(as_tuple=True)
    number, taker, point = indices[start, place], takers[start, place], points[start, place].to(totals.sums)
    giver = totals.labels[start, number].long()
    sums, counts, labels = totals.sums.clone(), totals.counts.clone(), totals.labels.clone()
    sums.index_put_((start, giver), -point, accumulate=True)
    counts.index_put_((start, giver), -torch.ones_like(giver), accumulate=True)
    sums[start, taker], counts[start, taker] = point, 1
    labels[start, number] = taker.to(labels)
    return Totals(sums, counts, labels, totals.changed)


def _farthest(blocks: Blocks, centres: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` points farthest from their centres, int64 (starts, count), and which of these exist."""
    distances = Distances(centres)
    best = centres.new_full((len(centres), count), -torch.inf)
    indices = torch.zeros_like(best, dtype=torch.long)
    first = 0
    for block in blocks:
        squared = distances(block).amin(2) + block.square().sum(1, keepdim=True) / 2  # (points, starts)
        numbers = torch.arange(first, first + len(block), device=block.device).expand(len(centres), -1)
        top = torch.cat([best, squared.T], 1).topk(count)
        best = top.values
        indices = torch.cat([indices, numbers], 1).gather(1, top.indices)
        first += len(block)
    return indices, best.isfinite()
