"""Lloyd's iteration for several starts at once (Lloyd 1982).

Centres are (starts, clusters, features) throughout: the starts differ in their centres and share the points.
Only what changes is computed: a point that stays in its cluster leaves the sums as they are, and after the first
passes those that provably stay are not compared with any centre.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.kmeans.blocks import Blocks, take
from genexp.kmeans.cluster_sums import Update
from genexp.kmeans.distances import Distances
from genexp.kmeans.exhaustive_assignment import Comparing
from genexp.kmeans.projection_bounds import Projections
from genexp.kmeans.pruned_assignment import Screening
from genexp.kmeans.small_problem import are_few, fit_few, tally_few
from genexp.kmeans.totals import Totals
from genexp.sharding import current_shard


def tally(blocks: Blocks, centres: Tensor, count: int) -> Totals:
    """Assign each of `count` points to its nearest centre."""
    if are_few(centres, count):
        return tally_few(blocks, centres, None)
    return _pass(blocks, centres, Totals.nothing(centres, count), None)


def iterate(blocks: Blocks, centres: Tensor, totals: Totals) -> tuple[Tensor, Totals]:
    """Move `centres` to the means of their clusters, and assign all points anew.

    Takes the `totals` that belong to the centres, and turns them into those of the new centres: both are returned.
    """
    filled = refill(totals, centres, blocks)
    means = filled.means(centres)
    few = are_few(centres, filled.labels.shape[1])
    return means, tally_few(blocks, means, filled) if few else _pass(blocks, means, filled, centres)


def fit(blocks: Blocks, count: int, centres: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Do at most so many iterations, fewer where centres stay where they are.

    Returns the best start's centres (clusters, features), and the cluster of each of the `count` points (points,).
    """
    if are_few(centres, count):
        centres, totals, iterations = fit_few(blocks, centres, iterations)
    else:
        totals = tally(blocks, centres, count)
    for _ in range(iterations):
        before = centres
        centres, totals = iterate(blocks, before, totals)
        if torch.equal(centres, before):
            break
    best = totals.energy(centres).argmin() if len(centres) > 1 else 0
    return centres[best], totals.labels[best]


def _pass(blocks: Blocks, centres: Tensor, known: Totals, before: Tensor | None) -> Totals:
    """Return the totals of `centres`, into which those that are `known` of the centres `before` are turned."""
    update = Update(known, centres)
    finder: Comparing | Screening
    if before is not None and Projections.pay(centres, update.labels.shape[1]):
        finder = Screening(centres, known, before, update, blocks)
    else:
        finder = Comparing(centres, known, before, update)
    first, seen = 0, []
    for block in blocks:
        mine = current_shard().row_slice(len(block))  # other processes may assign the others
        seen.append(slice(first + mine.start, first + mine.stop))
        finder.add(block[mine], seen[-1])
        first += len(block)
    finder.finish()
    return update.totals(seen, finder.hints)


def refill(totals: Totals, centres: Tensor, blocks: Blocks) -> Totals:
    """Give each empty cluster one of the points farthest from their centres, which its old cluster loses.

    This is scikit-learn's rule. It costs two passes, and nothing where no cluster is empty.
    """
    if totals.full:
        return totals
    empty = totals.counts == 0
    most = int(empty.sum(1).max())
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
    if totals.hints is not None:
        totals.hints.forget(start, number)
    return Totals(sums, counts, labels, totals.changed, totals.hints)


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
