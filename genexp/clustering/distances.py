"""Squared distances of points to fixed centres, each less the point's own squared norm, halved.

What is left out is the same for all centres, so that matrix products find the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genexp.clustering.bounds import group_count

GATHERED = 2**18  # features of centres, one for each of some points, that are copied at a time


@dataclass(frozen=True)
class Pairs:
    """Points, and groups of centres that they were compared with."""

    rows: Tensor  # int64 (pairs,) which point
    starts: Tensor  # which start the group is of
    groups: Tensor
    scores: Tensor  # (pairs, members): the distances; what a group has fewer members than others is infinitely far

    def at(self, chosen: Tensor) -> Pairs:
        """Return the pairs at the indices `chosen`."""
        return Pairs(self.rows[chosen], self.starts[chosen], self.groups[chosen], self.scores[chosen])

    def hide(self, clusters: Tensor, groups: int) -> None:
        """Let centres `clusters` (pairs,) be infinitely far, where they are members of their pair's group."""
        member = (clusters % groups == self.groups).nonzero().squeeze(1)
        self.scores[member, (clusters // groups)[member]] = torch.inf


class Distances:
    """The distances of points to `centres` (starts, clusters, features)."""

    def __init__(self, centres: Tensor) -> None:
        self._centres = centres
        self._rows = centres.flatten(0, 1)
        self._half_norms = self._rows.square().sum(1) / 2

    @property
    def group_count(self) -> int:
        """Return into how many groups the clusters of a start are divided."""
        return group_count(self._centres)

    @property
    def group_size(self) -> int:
        """Return how many clusters a group has at most."""
        return -(-self._centres.shape[1] // self.group_count)

    def __call__(self, points: Tensor) -> Tensor:
        """Return the distances of points (points, features) to all centres: (points, starts, clusters)."""
        scores = torch.addmm(self._half_norms, points, self._rows.T, alpha=-1)
        return scores.unflatten(1, self._centres.shape[:2])

    def to_one(self, points: Tensor, starts: Tensor, clusters: Tensor) -> Tensor:
        """Return the distance of each point to one centre: of start `starts` and cluster `clusters`, (points,)."""
        places = starts * self._centres.shape[1] + clusters
        scores = self._half_norms[places]
        at_once = max(1, GATHERED // points.shape[1])
        for first in range(0, len(points), at_once):
            some = slice(first, first + at_once)
            scores[some] -= self._rows.index_select(0, places[some]).mul_(points[some]).sum(1)
        return scores

    def to_groups(self, points: Tensor, doubtful: Tensor) -> Pairs:
        """Compare points with groups of centres, where `doubtful` (points, starts, groups) says so."""
        starts, groups, rows = doubtful.permute(1, 2, 0).nonzero(as_tuple=True)
        centres, half_norms = self._groups
        ends = torch.cumsum(doubtful.sum(0).flatten(), 0).tolist()
        scores = points.new_empty(len(rows), centres.shape[1])
        for group, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            if last > first:
                some = points.index_select(0, rows[first:last])
                torch.addmm(half_norms[group], some, centres[group].T, alpha=-1, out=scores[first:last])
        return Pairs(rows, starts, groups, scores)

    @cached_property
    def _groups(self) -> tuple[Tensor, Tensor]:
        """Return centres (starts · groups, members, features), and half their squared norms."""
        starts, clusters, features = self._centres.shape
        groups = group_count(self._centres)
        missing = -clusters % groups
        centres = torch.nn.functional.pad(self._centres, (0, 0, 0, missing))
        norms = torch.nn.functional.pad(self._half_norms.view(starts, clusters), (0, missing), value=torch.inf)
        apart = centres.unflatten(1, (-1, groups)).transpose(1, 2).reshape(starts * groups, -1, features)
        return apart, norms.unflatten(1, (-1, groups)).transpose(1, 2).reshape(starts * groups, -1)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the nearest of centres (clusters, features) for each point: int64 (points,)."""
    return Distances(centres.unsqueeze(0))(points).squeeze(1).argmin(1)
