"""Assignment step of Lloyd's algorithm that computes scores only for centers not ruled out by projections."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from genexp.kmeans.blocks import CHUNK_ELEMENTS, Blocks, get_chunk_size
from genexp.kmeans.cluster_sums import ClusterSums, ClusterSumsUpdater, Reassignments
from genexp.kmeans.hamerly_bounds import RELATIVE_ROUNDING
from genexp.kmeans.projection_bounds import CenterShift, ProjectionBounds
from genexp.sharding import SINGLE_SHARD, current_shard

CHUNK_SCORES = 2**20  # bounds on scores computed at a time: they fit in the cache
CHUNK_COORDINATES = 3 * 2**16  # coordinates of points that are copied at a time
CHUNK_PAIRS = 2**15  # pairs whose scores are computed at a time
LOOKAHEAD_POINTS = 2**15  # points that are pruned together, when most are expected to stay
# A fraction of the clusters, plus a number of clusters. If the mean number of candidates per point and start
# exceeds their sum, it is cheaper to compute all scores.
MAX_PAIR_FRACTION, MAX_EXTRA_PAIRS = 0.1, 2


@dataclass(frozen=True)
class CandidatePairs:
    """Pairs of a point and a candidate for its nearest center, its own included; sorted by point and start."""

    point_indices: Tensor  # int64 (pairs,): index of the point
    center_indices: Tensor  # int64 (pairs,): index of the center, start · clusters + cluster
    lower_scores: Tensor  # (pairs,): lower bound on the score

    def select_points(self, first: int, last: int) -> CandidatePairs:
        """Return the pairs of the points `first` to `last` - 1. Their `point_indices` count from `first`."""
        # NumPy takes half the time of torch.
        pair_slice = slice(*np.searchsorted(self.point_indices.numpy(), (first, last)))
        return CandidatePairs(
            self.point_indices[pair_slice] - first, self.center_indices[pair_slice], self.lower_scores[pair_slice]
        )


class PrunedAssignment:
    """Assignment of points to `centers` (starts, clusters, features), which records its changes in `update`.

    `previous` is the assignment to `old_centers`. Scores are those of `genexp.kmeans.distances`. Candidates are
    always compared by the same sums over all features, so the result does not depend on the pruning.
    """

    def __init__(
        self,
        centers: Tensor,
        previous: ClusterSums,
        old_centers: Tensor,
        update: ClusterSumsUpdater,
        blocks: Blocks,
    ) -> None:
        self._updater = update
        self._shape = centers.shape[:2]
        self._centers = centers.flatten(0, 1)
        self._half_norms = self._centers.square().sum(1) / 2
        self._max_squared_norm = 2 * self._half_norms.max()
        # (starts,): index of the first center of each start
        self._start_offsets = torch.arange(0, len(self._centers), self._shape[1])
        if isinstance(previous.bounds, ProjectionBounds):
            self.bounds = previous.bounds
            self._center_shift: CenterShift | None = previous.bounds.measure_shift(old_centers, centers)
        else:
            self.bounds, self._center_shift = (
                ProjectionBounds.from_blocks(blocks, centers, update.labels.shape[1]),
                None,
            )
        self._chunk_size = max(
            1, min(CHUNK_SCORES // len(self._centers), CHUNK_COORDINATES // self.bounds.basis.shape[1])
        )
        # All chunks share these buffers, the second for uncertain points: new allocations would fragment memory.
        self._scores, self._uncertain_scores = centers.new_empty(2, self._chunk_size, len(self._centers))
        self._center_projections = self.bounds.project(self._centers)  # (starts · clusters, dimensions + 1)
        self._pruned_slice = slice(0, 0)  # points that `_pairs` belongs to
        self._pairs: list[CandidatePairs] | None = None  # None: too many candidates

    def assign_block(self, block: Tensor, point_slice: slice) -> None:
        """Assign the points of `block`, which have the indices `point_slice`."""
        if not len(block):
            return
        if self._center_shift is None:
            self.bounds.select(point_slice).set_projections(block)
        if point_slice.stop > self._pruned_slice.stop:
            self._prune(point_slice)
        for pairs in (
            self._find_candidates_exhaustively(block, point_slice)
            if self._pairs is None
            else self._select_pairs(self._pairs, point_slice)
        ):
            self._updater.reassign(
                block, self._updater.labels[:, point_slice], self._find_reassignments(block, point_slice, pairs)
            )

    def finish(self) -> None:
        """Do nothing: no points wait in a buffer."""

    def _prune(self, index: slice) -> None:
        """Find the candidates of the points `index`, and of some blocks after them."""
        length = index.stop - index.start
        lookahead_blocks = (
            1
            if self._center_shift is None or current_shard() != SINGLE_SHARD
            else max(1, LOOKAHEAD_POINTS // length)
        )
        self._pruned_slice = slice(
            index.start, min(index.start + lookahead_blocks * length, self._updater.labels.shape[1])
        )
        self._pairs = []
        for chunk in self._find_uncertain(self._pruned_slice):
            pairs = self._prune_chunk(chunk)
            if pairs is None:
                self._pairs = None
                return
            self._pairs.append(pairs)

    def _prune_chunk(self, index: slice | Tensor) -> CandidatePairs | None:
        """Return the candidates of the points `index`, or None if there are too many."""
        bounds, own_columns = self.bounds.select(index), self._own_columns(index)
        slack = bounds.score_slack(self._center_projections[:, -1][own_columns]) + self._rounding_error(bounds)
        pairs = self._find_candidates(
            bounds.dequantize(), self._center_projections, own_columns, slack, bounds, MAX_PAIR_FRACTION
        )
        if pairs is None:
            return None
        if isinstance(index, slice):
            return replace(pairs, point_indices=pairs.point_indices + index.start)
        self.bounds.hamerly_bounds.put(index, bounds.hamerly_bounds)
        return replace(pairs, point_indices=index[pairs.point_indices])

    def _find_uncertain(self, index: slice) -> Iterator[slice | Tensor]:
        """Yield, in chunks, those of the points `index` that may change cluster, by the Hamerly bounds."""
        if self._center_shift is None:
            yield from _split_slice(index, self._chunk_size)
        else:
            rows = self.bounds.select(index).shift_bounds(self._center_shift, self._updater.labels[:, index])
            yield from (rows + index.start).split(self._chunk_size)

    def _select_pairs(self, candidates: list[CandidatePairs], index: slice) -> Iterator[CandidatePairs]:
        """Yield those of the pairs in `candidates` that belong to the points `index`."""
        return _merge_pairs(pairs.select_points(index.start, index.stop) for pairs in candidates)

    def _find_candidates_exhaustively(self, block: Tensor, index: slice) -> Iterator[CandidatePairs]:
        """Yield the candidates of the points in `block`, found from scores in all features."""
        projections = self.bounds.select(index).dequantize()
        for pairs in _merge_pairs(self._find_candidates_by_chunk(block, index)):
            inner_products = pair_products(projections, self._center_projections, pairs)
            yield replace(pairs, lower_scores=self._half_norms[pairs.center_indices] - inner_products)

    def _find_candidates_by_chunk(self, block: Tensor, index: slice) -> Iterator[CandidatePairs]:
        for chunk in _split_slice(
            index, min(self._chunk_size, get_chunk_size(CHUNK_ELEMENTS, block.shape[1], block))
        ):
            begin = chunk.start - index.start
            bounds, own_columns = self.bounds.select(chunk), self._own_columns(chunk)
            points = block[begin : chunk.stop - index.start]
            slack = self._rounding_error(bounds).expand_as(own_columns)
            pairs = self._find_candidates(points, self._centers, own_columns, slack, bounds, 1.0)
            assert pairs is not None
            yield replace(pairs, point_indices=pairs.point_indices + begin)

    def _own_columns(self, index: slice | Tensor) -> Tensor:
        """Return the own centers of the points `index`, as `center_indices`: int64 (points, starts)."""
        return self._updater.labels[:, index].T.long() + self._start_offsets

    def _rounding_error(self, bounds: ProjectionBounds) -> Tensor:
        """Return the largest rounding error of scores: (points, 1)."""
        return RELATIVE_ROUNDING * (bounds.squared_norms + self._max_squared_norm).unsqueeze(1)

    def _find_candidates(
        self,
        points: Tensor,
        centers: Tensor,
        own_columns: Tensor,
        slack: Tensor,
        bounds: ProjectionBounds,
        max_fraction: float,
    ) -> CandidatePairs | None:
        """Return the candidates for the nearest centers of points, or None if there are too many.

        A center is a candidate if its score is below that of the own center plus `slack` (points, starts).
        `points` (points, dimensions) and `centers` (starts · clusters, dimensions) are projections, or have all
        features. `own_columns` is int64 (points, starts). `max_fraction` limits the candidates, see
        `MAX_PAIR_FRACTION`. Sets the Hamerly bounds in `bounds`. For points with candidates these are
        incomplete: they cover only the centers that are no candidates. `_find_reassignments` completes them.
        """
        out = self._scores[: len(points)]
        scores = torch.addmm(self._half_norms, points, centers.T, alpha=-1, out=out)
        own_scores = scores.gather(1, own_columns)
        limits = own_scores + slack
        other_scores = scores.scatter_(1, own_columns, torch.inf).unflatten(1, self._shape).amin(2)
        is_uncertain = other_scores < limits
        rows = is_uncertain.any(1).nonzero().squeeze(1)
        uncertain_scores = torch.index_select(scores, 0, rows, out=self._uncertain_scores[: len(rows)])
        uncertain_scores.scatter_(1, own_columns[rows], own_scores[rows])
        # In a start where the point certainly stays, not even its own center is a candidate.
        row_limits = limits.masked_fill(~is_uncertain, -torch.inf).index_select(0, rows)
        is_candidate = (uncertain_scores.unflatten(1, self._shape) < row_limits.unsqueeze(2)).flatten(1)
        if is_candidate.count_nonzero() > max_fraction * scores.numel() + MAX_EXTRA_PAIRS * own_columns.numel():
            return None
        positions, columns = is_candidate.nonzero(as_tuple=True)
        pairs = CandidatePairs(rows[positions], columns, uncertain_scores[positions, columns])
        uncertain_scores[positions, columns] = torch.inf
        pruned_minima = uncertain_scores.unflatten(1, self._shape).amin(2)
        other_scores[rows] = torch.where(is_uncertain[rows], pruned_minima, other_scores[rows])
        bounds.hamerly_bounds.set_all_bounds(
            limits.masked_fill_(is_uncertain, -torch.inf),
            other_scores,
            bounds.squared_norms,
            self._max_squared_norm,
        )
        return pairs

    def _find_reassignments(self, points: Tensor, index: slice, pairs: CandidatePairs) -> Reassignments:
        """Return the points whose nearest center in `pairs` differs from their own, and complete the bounds.

        `points` (points, features) have the indices `index`.
        """
        bounds, own_columns = self.bounds.select(index), self._own_columns(index)
        scores = self._half_norms[pairs.center_indices] - pair_products(points, self._centers, pairs)
        starts = pairs.center_indices // self._shape[1]
        keys = pairs.point_indices * own_columns.shape[1] + starts
        is_own = pairs.center_indices == own_columns.flatten()[keys]
        best = _argmin_by_key(scores, keys, is_own, own_columns.numel())
        rows, columns = pairs.point_indices[best], pairs.center_indices[best]
        other_scores = scores.index_fill(0, best, torch.inf)
        second_scores = scores.new_full((own_columns.numel(),), torch.inf).scatter_reduce_(
            0, keys, other_scores, "amin"
        )
        squared_norms = bounds.squared_norms[rows]
        bounds.hamerly_bounds.set_bounds(
            keys[best], scores[best], second_scores[keys[best]], squared_norms, self._max_squared_norm
        )
        residual_products = bounds.residual_norms[rows] * self._center_projections[:, -1][columns]
        bounds.residual_products.view(-1)[keys[best]] = pairs.lower_scores[best] - scores[best] + residual_products
        moved = best[~is_own[best]]
        return Reassignments(
            pairs.point_indices[moved], starts[moved], pairs.center_indices[moved] % self._shape[1]
        )


def _split_slice(index: slice, length: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `length` that make up `index`."""
    for begin in range(index.start, index.stop, length):
        yield slice(begin, min(begin + length, index.stop))


def _merge_pairs(candidates: Iterable[CandidatePairs]) -> Iterator[CandidatePairs]:
    """Yield the pairs in groups of up to `CHUNK_PAIRS`: few enough calls, in limited memory."""
    pending: list[CandidatePairs] = []
    for pairs in candidates:
        if pending and sum(len(each.point_indices) for each in [*pending, pairs]) > CHUNK_PAIRS:
            yield _concatenate_pairs(pending)
            pending = []
        pending.append(pairs)
    if any(len(each.point_indices) for each in pending):
        yield _concatenate_pairs(pending)


def _concatenate_pairs(candidates: list[CandidatePairs]) -> CandidatePairs:
    return CandidatePairs(
        torch.cat([pairs.point_indices for pairs in candidates]),
        torch.cat([pairs.center_indices for pairs in candidates]),
        torch.cat([pairs.lower_scores for pairs in candidates]),
    )


def pair_products(points: Tensor, centers: Tensor, pairs: CandidatePairs) -> Tensor:
    """Return the inner product of the point and the center of each pair: (pairs,).

    `points` is (points, features), `centers` (starts · clusters, features).
    """
    row_ends = pairs.point_indices.bincount(minlength=len(points)).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        # `check_invariants` below disables them explicitly.
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
        pattern = torch.sparse_csr_tensor(
            torch.nn.functional.pad(row_ends, (1, 0)),
            pairs.center_indices,
            points.new_zeros(len(pairs.center_indices)),
            size=(len(points), len(centers)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(pattern, points, centers.T).values()


def _argmin_by_key(scores: Tensor, keys: Tensor, is_preferred: Tensor, num_keys: int) -> Tensor:
    """Return the position of the smallest score of each key that occurs: int64 (keys,).

    Of equal scores, one with `is_preferred` wins, else the first. `scores`, `keys` and `is_preferred` are
    (pairs,). Keys are at least 0 and below `num_keys`.
    """
    minima = scores.new_full((num_keys,), torch.inf).scatter_reduce_(0, keys, scores, "amin")
    ties = (scores == minima[keys]).nonzero().squeeze(1)
    # Preferred pairs get negative numbers, so they win the minimum. The modulo below restores their position.
    priorities = ties - len(scores) * is_preferred[ties]
    winners = priorities.new_full((num_keys,), len(scores)).scatter_reduce_(0, keys[ties], priorities, "amin")
    return winners[winners < len(scores)] % max(1, len(scores))
