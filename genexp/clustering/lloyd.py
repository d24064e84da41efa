"""Lloyd's iteration for several starts at once (Lloyd 1982).

Centres are (starts, clusters, features) throughout: the starts differ in their centres and share the points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.clustering.blocks import Blocks, take

LANES = 16  # columns that are compared side by side


@dataclass(frozen=True)
class Totals:
    """What one pass over the points leaves of them."""

    sums: Tensor  # (starts, clusters, features) of the points nearest to each centre
    counts: Tensor  # int64 (starts, clusters)
    energy: Tensor  # (starts,) the inertia, less the squared norms of all points

    def means(self, otherwise: Tensor) -> Tensor:
        """Return the mean of each cluster; where it has no points, `otherwise`."""
        counts = self.counts.unsqueeze(2)
        return torch.where(counts > 0, self.sums / counts.clamp(min=1), otherwise)


class Distances:
    """The squared distances of points to fixed centres, each less the point's own squared norm, halved.

    What is left out is the same for all centres, so that one matrix product per block finds the nearest.
    """

    def __init__(self, centres: Tensor) -> None:
        self._shape = centres.shape[:2]
        self._rows = centres.flatten(0, 1)
        self._half_norms = self._rows.square().sum(1) / 2

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least of these, and the index of its centre: each (points, starts)."""
        scores = torch.addmm(self._half_norms, points, self._rows.T, alpha=-1)
        return least(scores.unflatten(1, self._shape))


def least(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimum over the last axis and the first index of it, both int64 and exact."""
    width = scores.shape[-1]
    if width < 4 * LANES or width % LANES:
        found = scores.min(-1)
        return found.values, found.indices
    # torch finds a minimum with its index one element after the other, but the minimum alone side by side.
    lanes = scores.unflatten(-1, (width // LANES, LANES))
    by_lane = lanes.amin(-2)  # (..., LANES)
    lane = by_lane.min(-1).indices
    column = lanes.gather(-1, lane[..., None, None].expand(*lanes.shape[:-1], 1)).squeeze(-1)
    found = column.min(-1)
    return found.values, found.indices * LANES + lane


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the nearest of centres (clusters, features) for each point: int64 (points,)."""
    return Distances(centres.unsqueeze(0)).nearest(points)[1].squeeze(1)


def tally(blocks: Blocks, centres: Tensor) -> Totals:
    """Assign every point to its nearest centre and return what the next centres follow from."""
    starts = len(centres)
    distances = Distances(centres)
    sums = torch.zeros_like(centres)
    counts = torch.zeros(centres.shape[:2], dtype=torch.long, device=centres.device)
    energies = []
    for block in blocks:
        closeness, labels = distances.nearest(block)  # (points, starts)
        energies.append(closeness.sum(0))
        counts.scatter_add_(1, labels.T, torch.ones_like(labels.T))
        for start in range(starts):  # the alternative repeats the block in memory for each start
            sums[start].index_add_(0, labels[:, start], block)
    # Stacked, the sum goes by pairs: a running one would lose digits with each block.
    return Totals(sums, counts, 2 * torch.stack(energies).sum(0))


def iterate(blocks: Blocks, centres: Tensor, totals: Totals) -> tuple[Tensor, Totals]:
    """Move `centres` to the means of their clusters, and assign all points anew.

    Takes the `totals` that belong to the centres; returns the new centres and the totals that belong to those.
    """
    means = refill(totals, centres, blocks).means(centres)
    return means, tally(blocks, means)


def fit(blocks: Blocks, centres: Tensor, iterations: int) -> Tensor:
    """Return the best of the starts, (clusters, features), after at most so many iterations."""
    totals = tally(blocks, centres)
    for _ in range(iterations):
        before = centres
        centres, totals = iterate(blocks, before, totals)
        if torch.equal(centres, before):
            break
    return centres[totals.energy.argmin()]


def refill(totals: Totals, centres: Tensor, blocks: Blocks) -> Totals:
    """Give each empty cluster one of the points farthest from their centres, which its old cluster loses.

    This is scikit-learn's rule. It costs two passes, and nothing where no cluster is empty.
    """
    empty = totals.counts == 0
    most = int(empty.sum(1).max())
    if not most:
        return totals
    indices, donors, found = _farthest(blocks, centres, most)  # (starts, most) each
    points = take(blocks, indices.flatten().cpu()).unflatten(0, indices.shape)
    wanted = torch.arange(most, device=empty.device) < empty.sum(1, keepdim=True)  # (starts, most)
    given = wanted & found  # a small batch may have fewer points than there are empty clusters
    sums = totals.sums.scatter_add(1, donors.unsqueeze(2).expand_as(points), -points * given.unsqueeze(2))
    counts = totals.counts.scatter_add(1, donors, -given.long())
    place = (empty.cumsum(1) - 1).clamp(min=0)  # (starts, clusters) which of the points an empty cluster gets
    filled = empty & given.gather(1, place)
    received = points.gather(1, place.unsqueeze(2).expand_as(sums))
    sums = torch.where(filled.unsqueeze(2), received, sums)
    return Totals(sums, torch.where(filled, 1, counts), totals.energy)


def _farthest(blocks: Blocks, centres: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `count` points farthest from their centres, and their clusters: int64 (starts, count) each.

    The third tensor says which of these there are.
    """
    distances = Distances(centres)
    starts = len(centres)
    best = centres.new_full((starts, count), -torch.inf)
    indices = torch.zeros(starts, count, dtype=torch.long, device=centres.device)
    clusters = torch.zeros_like(indices)
    first = 0
    for block in blocks:
        closeness, labels = distances.nearest(block)  # (points, starts)
        squared = closeness + block.square().sum(1, keepdim=True) / 2
        numbers = torch.arange(first, first + len(block), device=block.device).expand(starts, -1)
        top = torch.cat([best, squared.T], 1).topk(count)
        best = top.values
        indices = torch.cat([indices, numbers], 1).gather(1, top.indices)
        clusters = torch.cat([clusters, labels.T], 1).gather(1, top.indices)
        first += len(block)
    return indices, clusters, best.isfinite()
