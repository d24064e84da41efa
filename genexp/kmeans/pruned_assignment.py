"""Nearest centres by comparing a point only with those that its projection does not rule out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from genexp.kmeans.blocks import FEATURES, Blocks, at_once
from genexp.kmeans.cluster_sums import Moves, Update
from genexp.kmeans.hamerly_bounds import ROUNDING
from genexp.kmeans.projection_bounds import Drift, Projections
from genexp.kmeans.totals import Totals
from genexp.sharding import SINGLE_SHARD, current_shard

SCORES = 2**20  # bounds that are handled at a time: so many stay in the cache
COORDINATES = 3 * 2**16  # that are copied at a time
AT_ONCE = 2**15  # pairs
AHEAD = 2**15  # points that are screened together, where most are expected to stay
MANY, FEW = 0.1, 2  # a part of all centres, and more than so many: it is cheaper to compare with each of them


@dataclass(frozen=True)
class Pairs:
    """Points with centres that may be the nearest, their own among them; sorted by point and start."""

    rows: Tensor  # int64 (pairs,) which point
    columns: Tensor  # which centre of all starts together
    seem: Tensor  # the least that the distance may be

    def between(self, first: int, last: int) -> Pairs:
        """Return the pairs of the points from `first` to before `last`, which are counted from there."""
        ends = slice(*np.searchsorted(self.rows.numpy(), (first, last)))  # in half the time that torch takes
        return Pairs(self.rows[ends] - first, self.columns[ends], self.seem[ends])


class Screening:
    """Compares points with `centres` (starts, clusters, features), which come after others `before`.

    Distances are halved squares that lack the points' own squared norms. Whether a centre is nearer than another
    is always decided by the same sums over all features: what was ruled out before makes no difference.
    """

    def __init__(self, centres: Tensor, known: Totals, before: Tensor, update: Update, blocks: Blocks) -> None:
        self._update = update
        self._shape = centres.shape[:2]
        self._centres = centres.flatten(0, 1)
        self._half_norms = self._centres.square().sum(1) / 2
        self._largest = 2 * self._half_norms.max()
        self._first = torch.arange(0, len(self._centres), self._shape[1])  # of each start
        if isinstance(known.hints, Projections):
            self.hints = known.hints
            self._drift: Drift | None = known.hints.drift(before, centres)
        else:
            self.hints, self._drift = Projections.of(blocks, centres, update.labels.shape[1]), None
        self._chunk = max(1, min(SCORES // len(self._centres), COORDINATES // self.hints.basis.shape[1]))
        # Scores, and those of points in doubt, are written to the same place: memory stays in one piece.
        self._scores, self._some = centres.new_empty(2, self._chunk, len(self._centres))
        self._projected = self.hints.project(self._centres)  # (starts · clusters, dimensions + 1)
        self._screened = slice(0, 0)  # points for which it is known which centres may be nearer than their own:
        self._pairs: list[Pairs] | None = None  # these; None: too many of them

    def add(self, block: Tensor, place: slice) -> None:
        """Assign the points of `block`, which are those at `place`."""
        if not len(block):
            return
        if self._drift is None:
            self.hints.at(place).fill(block)
        if place.stop > self._screened.stop:
            self._screen(place)
        for pairs in self._of_all(block, place) if self._pairs is None else self._of_some(self._pairs, place):
            self._update.move(block, self._update.labels[:, place], self._moves(block, place, pairs))

    def finish(self) -> None:
        """Nothing is left to do once all blocks were added."""

    def _screen(self, place: slice) -> None:
        """Find out which centres may be nearer than their own to the points at `place` and some behind."""
        length = place.stop - place.start
        ahead = 1 if self._drift is None or current_shard() != SINGLE_SHARD else max(1, AHEAD // length)
        self._screened = slice(place.start, min(place.start + ahead * length, self._update.labels.shape[1]))
        self._pairs = []
        for some in self._doubtful(self._screened):
            pairs = self._near(some)
            if pairs is None:
                self._pairs = None
                return
            self._pairs.append(pairs)

    def _near(self, some: slice | Tensor) -> Pairs | None:
        """Return which centres may be nearer than their own to these points; None: too many of them."""
        known, own = self.hints.at(some), self._own(some)
        gap = known.gap(self._projected[:, -1][own]) + self._rounding(known)
        pairs = self._possible(known.projected(), self._projected, own, gap, known, MANY)
        if pairs is None:
            return None
        if isinstance(some, slice):
            return replace(pairs, rows=pairs.rows + some.start)
        self.hints.bounds.put(some, known.bounds)
        return replace(pairs, rows=some[pairs.rows])

    def _doubtful(self, place: slice) -> Iterator[slice | Tensor]:
        """Yield those of the points at `place`, some at a time, that bounds do not keep in their clusters."""
        if self._drift is None:
            yield from _parts(place, self._chunk)
        else:
            rows = self.hints.at(place).loosen(self._drift, self._update.labels[:, place])
            yield from (rows + place.start).split(self._chunk)

    def _of_some(self, found: list[Pairs], place: slice) -> Iterator[Pairs]:
        """Yield those pairs that were found for the points at `place`."""
        return _together(pairs.between(place.start, place.stop) for pairs in found)

    def _of_all(self, block: Tensor, place: slice) -> Iterator[Pairs]:
        """Compare points with all centres; yield those that may be nearer than their own."""
        projected = self.hints.at(place).projected()
        for pairs in _together(self._compare(block, place)):
            inside = products(projected, self._projected, pairs)
            yield replace(pairs, seem=self._half_norms[pairs.columns] - inside)

    def _compare(self, block: Tensor, place: slice) -> Iterator[Pairs]:
        for some in _parts(place, min(self._chunk, at_once(FEATURES, block.shape[1], block))):
            begin = some.start - place.start
            known, own = self.hints.at(some), self._own(some)
            points = block[begin : some.stop - place.start]
            gap = self._rounding(known).expand_as(own)
            pairs = self._possible(points, self._centres, own, gap, known, 1.0)
            assert pairs is not None
            yield replace(pairs, rows=pairs.rows + begin)

    def _own(self, place: slice | Tensor) -> Tensor:
        """Return which of all centres the points at `place` belong to: (points, starts)."""
        return self._update.labels[:, place].T.long() + self._first

    def _rounding(self, known: Projections) -> Tensor:
        """Return what distances may be off by rounding: (points, 1)."""
        return ROUNDING * (known.norms + self._largest).unsqueeze(1)

    def _possible(
        self, points: Tensor, centres: Tensor, own: Tensor, gap: Tensor, known: Projections, most: float
    ) -> Pairs | None:
        """Return which centres seem nearer to points than their own and a gap; None if more than `most`.

        The bounds of the points, in `known`, become those that hold when none of these is nearer, and where there
        are some, wait for what `_moves` finds.
        """
        room = self._scores[: len(points)]
        scores = torch.addmm(self._half_norms, points, centres.T, alpha=-1, out=room)
        at_own = scores.gather(1, own)
        limits = at_own + gap
        others = scores.scatter_(1, own, torch.inf).unflatten(1, self._shape).amin(2)
        doubtful = others < limits
        rows = doubtful.any(1).nonzero().squeeze(1)
        some = torch.index_select(scores, 0, rows, out=self._some[: len(rows)])
        some.scatter_(1, own[rows], at_own[rows])
        # Where a start is not in doubt, not even the own centre is to be compared.
        reach = limits.masked_fill(~doubtful, -torch.inf).index_select(0, rows)
        possible = (some.unflatten(1, self._shape) < reach.unsqueeze(2)).flatten(1)
        if possible.count_nonzero() > most * scores.numel() + FEW * own.numel():
            return None
        number, columns = possible.nonzero(as_tuple=True)
        pairs = Pairs(rows[number], columns, some[number, columns])
        some[number, columns] = torch.inf
        beyond = some.unflatten(1, self._shape).amin(2)
        others[rows] = torch.where(doubtful[rows], beyond, others[rows])
        known.bounds.replace(limits.masked_fill_(doubtful, -torch.inf), others, known.norms, self._largest)
        return pairs

    def _moves(self, points: Tensor, place: slice, pairs: Pairs) -> Moves:
        """Return which points go to which centre of their pairs, and note what is known of the nearest ones."""
        known, own = self.hints.at(place), self._own(place)
        scores = self._half_norms[pairs.columns] - products(points, self._centres, pairs)
        starts = pairs.columns // self._shape[1]
        keys = pairs.rows * own.shape[1] + starts
        stays = pairs.columns == own.flatten()[keys]
        chosen = _least(scores, keys, stays, own.numel())
        rows, columns = pairs.rows[chosen], pairs.columns[chosen]
        beside = scores.index_fill(0, chosen, torch.inf)
        second = scores.new_full((own.numel(),), torch.inf).scatter_reduce_(0, keys, beside, "amin")
        norms = known.norms[rows]
        known.bounds.settle(keys[chosen], scores[chosen], second[keys[chosen]], norms, self._largest)
        lengths = known.lengths[rows] * self._projected[:, -1][columns]
        known.products.view(-1)[keys[chosen]] = pairs.seem[chosen] - scores[chosen] + lengths
        goes = chosen[~stays[chosen]]
        return Moves(pairs.rows[goes], starts[goes], pairs.columns[goes] % self._shape[1])


def _parts(place: slice, length: int) -> Iterator[slice]:
    """Yield the slices of at most `length` that `place` is made of."""
    for begin in range(place.start, place.stop, length):
        yield slice(begin, min(begin + length, place.stop))


def _together(found: Iterable[Pairs]) -> Iterator[Pairs]:
    """Yield pairs joined: enough of them at a time to be worth the calls, and not so many as to fill memory."""
    held: list[Pairs] = []
    for pairs in found:
        if held and sum(len(each.rows) for each in [*held, pairs]) > AT_ONCE:
            yield _joined(held)
            held = []
        held.append(pairs)
    if any(len(each.rows) for each in held):
        yield _joined(held)


def _joined(found: list[Pairs]) -> Pairs:
    parts = zip(*((pairs.rows, pairs.columns, pairs.seem) for pairs in found), strict=True)
    return Pairs(*(torch.cat(tensors) for tensors in parts))


def products(points: Tensor, centres: Tensor, pairs: Pairs) -> Tensor:
    """Return the inner product of each pair: (pairs,)."""
    ends = pairs.rows.bincount(minlength=len(points)).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")  # explicitly, below
        pattern = torch.sparse_csr_tensor(
            torch.nn.functional.pad(ends, (1, 0)),
            pairs.columns,
            points.new_zeros(len(pairs.columns)),
            size=(len(points), len(centres)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(pattern, points, centres.T).values()


def _least(scores: Tensor, keys: Tensor, preferred: Tensor, count: int) -> Tensor:
    """Return where each of `count` keys that occurs has its least score: of equals `preferred`, or the first."""
    least = scores.new_full((count,), torch.inf).scatter_reduce_(0, keys, scores, "amin")
    equal = (scores == least[keys]).nonzero().squeeze(1)
    order = equal - len(scores) * preferred[equal]
    first = order.new_full((count,), len(scores)).scatter_reduce_(0, keys[equal], order, "amin")
    return first[first < len(scores)] % max(1, len(scores))
