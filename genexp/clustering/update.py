"""One pass over the points: from what is known of some centres to what is known of the next."""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.clustering.bounds import Bounds, distances
from genexp.clustering.distances import Distances, Pairs
from genexp.clustering.point_buffer import PointBuffer
from genexp.clustering.totals import NOWHERE, Totals
from genexp.whole_batch import ALL, here, total

MOST = 0.6  # of a block must be compared: it is cheaper to compare it whole than to gather that much
MANY = 0.4  # of all groups are doubtful: it is cheaper to compare with all centres
WIDE = 16  # centres in a group: it pays to compare with groups apart
SCORES = 2**20  # distances that are computed at a time: so many stay in the processor's cache
MOVED = 2**18  # features of points that change their cluster, which are copied, so many at a time


class Update:
    """Brings totals from one set of centres to the next in place, block by block."""

    def __init__(self, centres: Tensor, known: Totals, before: Tensor | None) -> None:
        self._distances = Distances(centres)
        self._largest = centres.square().sum(2).amax(1)  # (starts,)
        self._sums, self._counts, self._labels, self._bounds = known.sums, known.counts, known.labels, known.bounds
        if here().index:  # the sums of all parts are added up in the end: one of them has what is known
            self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        self._seen: list[slice] = []
        self._chunk = max(1, SCORES // self._counts.numel())
        self._new = 0
        self._rows: Tensor | None = None  # the points that must be compared; None: all
        self._fresh = self._bounds is None and Bounds.pay(centres, known.changed)
        if self._fresh:
            self._bounds = Bounds.unknown(centres, self._labels.shape[1])
        elif self._bounds is not None and before is not None:
            self._rows = self._bounds.loosen(before, centres, self._labels)
        self._gathered = PointBuffer(centres.shape[2], centres)

    def totals(self) -> Totals:
        """Return what is known once all blocks were added."""
        self._assign_gathered()
        sums, counts = total(self._sums), total(self._counts)
        sums.masked_fill_(counts.unsqueeze(2) == 0, 0)  # and not what rounding left of points that came and went
        new = int(total(torch.tensor(self._new, device=counts.device)))
        return Totals(sums, counts, self._all_labels(), new / max(1, self._labels.numel()), self._bounds)

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
        rows = self._to_compare(place)
        if rows is None or len(rows) > MOST * len(block):
            self._assign(block, place)
        elif len(rows):
            if not self._gathered.has_room(len(rows)):
                self._assign_gathered()
            self._gathered.add(block, rows - place.start, rows)

    def _to_compare(self, place: slice) -> Tensor | None:
        if self._rows is None:
            return None
        ends = torch.tensor([place.start, place.stop], device=self._rows.device)
        first, last = torch.searchsorted(self._rows, ends).tolist()
        return self._rows[first:last]

    def _assign_gathered(self) -> None:
        if len(self._gathered):
            self._assign(*self._gathered.taken())

    def _assign(self, points: Tensor, place: slice | Tensor) -> None:
        """Note the nearest centre of each point at `place`, and what spares comparisons with the others."""
        labels, bounds = self._labels[:, place], None if self._bounds is None else self._bounds.at(place)
        if bounds is not None and self._rows is not None and self._distances.group_size >= WIDE:
            self._compare_groups(points, labels, bounds)
        else:
            self._compare(points, labels, bounds)
        if isinstance(place, Tensor):
            self._labels.index_copy_(1, place, labels)
            if self._bounds is not None and bounds is not None:
                self._bounds.put(place, bounds)

    def _compare(self, points: Tensor, labels: Tensor, bounds: Bounds | None) -> None:
        """Compare points with all centres."""
        for first in range(0, len(points), self._chunk):
            some = slice(first, first + self._chunk)
            self._compare_some(points[some], labels[:, some], None if bounds is None else bounds.at(some))

    def _compare_some(self, points: Tensor, labels: Tensor, bounds: Bounds | None) -> None:
        scores = self._distances(points)  # (points, starts, clusters)
        least, known = scores.amin(2), labels.T.long()
        # torch finds a minimum several times faster than its place, and the place is mostly known.
        closer = least < scores.gather(2, known.clamp(min=0).unsqueeze(2)).squeeze(2)
        rows, starts = (closer | (known == NOWHERE)).nonzero(as_tuple=True)
        if len(rows) > known.numel() / 2:
            self._move(points, labels, rows, starts, scores.argmin(2)[rows, starts])
        elif len(rows):
            self._move(points, labels, rows, starts, scores[rows, starts].argmin(1))
        if bounds is not None:
            if self._fresh:
                torch.linalg.vector_norm(points, dim=1, out=bounds.norms).square_()
            bounds.measure(scores, labels, self._largest)

    def _compare_groups(self, points: Tensor, labels: Tensor, bounds: Bounds) -> None:
        """Compare points with the groups of centres of which one may be nearer than their own."""
        own = labels.T.long()  # (points, starts)
        near = self._to_own(points, own)
        bounds.upper.copy_(distances(near, bounds.high(self._largest)))
        doubtful = bounds.lower < bounds.upper.unsqueeze(2)
        if doubtful.sum() > MANY * doubtful.numel():
            self._compare(points, labels, bounds)
            return
        pairs = self._distances.to_groups(points, doubtful)
        pairs.hide(own[pairs.rows, pairs.starts], doubtful.shape[2])
        low = bounds.low(self._largest)
        least = distances(pairs.scores.amin(1), low[pairs.rows, pairs.starts])
        bounds.lower[pairs.rows, pairs.starts, pairs.groups] = least
        won = pairs.at(self._winners(points, pairs, near))
        if len(won.rows):
            self._change(points, labels, bounds, won, near)

    def _to_own(self, points: Tensor, own: Tensor) -> Tensor:
        """Return the distances (points, starts) to the points' own centres."""
        starts = torch.arange(own.shape[1], device=own.device)
        columns = [self._distances.to_one(points, start.expand(len(own)), own[:, start]) for start in starts]
        return torch.stack(columns, 1)

    def _winners(self, points: Tensor, pairs: Pairs, near: Tensor) -> Tensor:
        """Return which pairs have a centre that the point goes to, being nearer than its own at `near`."""
        least, place = pairs.scores.amin(1), pairs.rows * near.shape[1] + pairs.starts
        found = (least < near.flatten()[place]).nonzero().squeeze(1)
        # A point may be nearer to centres of several groups, and as near to one of each.
        best = near.new_full((near.numel(),), torch.inf).scatter_reduce_(0, place[found], least[found], "amin")
        found = found[least[found] == best[place[found]]]
        order = torch.arange(len(found), device=found.device)
        first = order.new_full((near.numel(),), len(found)).scatter_reduce_(0, place[found], order, "amin")
        found = found[first[place[found]] == order]
        # Products of other shapes round differently: whether it is nearer is decided by the same sums for both.
        some = pairs.at(found)
        clusters = some.scores.argmin(1) * self._distances.group_count + some.groups
        new = self._distances.to_one(points.index_select(0, some.rows), some.starts, clusters)
        return found[new < near.flatten()[place[found]]]

    def _change(self, points: Tensor, labels: Tensor, bounds: Bounds, won: Pairs, near: Tensor) -> None:
        """Let points go to the nearest centre of the groups that `won`; the one they leave is another now."""
        rows, starts, groups = won.rows, won.starts, self._distances.group_count
        high, low = bounds.high(self._largest)[rows, starts], bounds.low(self._largest)[rows, starts]
        to, left = won.scores.argmin(1) * groups + won.groups, labels.T[rows, starts].long()
        bounds.upper[rows, starts] = distances(won.scores.amin(1), high)
        won.hide(to, groups)
        bounds.lower[rows, starts, won.groups] = distances(won.scores.amin(1), low)
        home = (rows, starts, left % groups)
        bounds.lower[home] = torch.minimum(bounds.lower[home], distances(near[rows, starts], low))
        self._move(points, labels, rows, starts, to)

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
