"""Bounds that spare comparisons: a point stays in its cluster while no other centre can have come nearer.

Each point knows how far its own centre is at most, and how far at least the nearest of each group of others.
With a group for each centre these are Elkan's bounds (2003), with one for all Hamerly's (2010), and with some
between them those of Yinyang k-means (Ding et al. 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 25  # features of a point for each of its bounds: all take a twenty-fifth of what the points take
FEW, VERY_FEW = 0.3, 0.08  # of the points changed: a bound for each centre pays, and one for several
ROUNDING = 4e-6  # of the squared norms involved: how far a squared distance may be off in float32
AT_ONCE = 2**14  # points whose bounds are loosened at a time: what that takes besides stays small


@dataclass(frozen=True)
class Bounds:
    """What is known of each point. Centre i belongs to group i modulo their number."""

    upper: Tensor  # (points, starts) the distance to a point's own centre is at most so large
    lower: Tensor  # (points, starts, groups) those to other centres of a group are at least so large
    norms: Tensor  # (points,) squared norms

    @staticmethod
    def pay(centres: Tensor, changed: float) -> bool:
        """Return whether bounds are worth their price, where a part of the points changed their cluster before."""
        return changed < (FEW if group_count(centres) == centres.shape[1] else VERY_FEW)

    @classmethod
    def unknown(cls, centres: Tensor, count: int) -> Bounds:
        """Return room for the bounds of `count` points that were not compared with `centres` yet."""
        starts, groups = len(centres), group_count(centres)
        new = centres.new_zeros
        return cls(new(count, starts), new(count, starts, groups), new(count))

    def at(self, place: slice | Tensor) -> Bounds:
        """Return the bounds of the points at `place`: a view at a slice, and a copy at indices."""
        if isinstance(place, slice):
            return Bounds(self.upper[place], self.lower[place], self.norms[place])
        parts = (part.index_select(0, place) for part in (self.upper, self.lower, self.norms))
        return Bounds(*parts)

    def put(self, place: Tensor, new: Bounds) -> None:
        """Note the `new` bounds of the points at `place`."""
        self.upper.index_copy_(0, place, new.upper)
        self.lower.index_copy_(0, place, new.lower)

    def loosen(self, before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
        """Follow centres that moved, for points with `labels` (starts, points); return which to compare anew."""
        moves = (after - before).square().sum(2).sqrt() * (1 + 1e-5)  # (starts, clusters)
        starts, clusters = moves.shape
        groups = self.lower.shape[2]
        largest = torch.nn.functional.pad(moves, (0, -clusters % groups)).unflatten(1, (-1, groups)).amax(1)
        first = torch.arange(0, starts * clusters, clusters, device=moves.device).unsqueeze(1)
        rows = []
        for begin in range(0, len(self.lower), AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            own = (labels[:, some] + first).T
            self.upper[some] += moves.flatten()[own]
            self.lower[some] -= largest
            doubtful = (self.lower[some].amin(2) < self.upper[some]).any(1)
            rows.append(doubtful.nonzero().squeeze(1) + begin)
        return torch.cat(rows)

    def measure(self, scores: Tensor, labels: Tensor, largest: Tensor) -> None:
        """Note what is known of points that were just compared with all centres and have got `labels`.

        `scores` (points, starts, clusters) are halved squared distances less the points' own squared norms; those
        to the points' own centres are lost in here. `largest` is the largest squared norm of a centre, (starts,).
        """
        own = labels.T.long().unsqueeze(2)
        self.upper.copy_(distances(scores.gather(2, own).squeeze(2), self.high(largest)))
        least = _least_of_groups(scores.scatter_(2, own, torch.inf), self.lower.shape[2])
        self.lower.copy_(distances(least, self.low(largest).unsqueeze(2)))

    def high(self, largest: Tensor) -> Tensor:
        """Return (points, starts) what squares lack, such that no distance becomes too small by rounding."""
        norms = self.norms.unsqueeze(1)
        return norms + ROUNDING * (norms + largest)

    def low(self, largest: Tensor) -> Tensor:
        """Return (points, starts) what squares lack, such that no distance becomes too large by rounding."""
        norms = self.norms.unsqueeze(1)
        return norms - ROUNDING * (norms + largest)


def group_count(centres: Tensor) -> int:
    """Return into how many groups `centres` are divided: as many as a bound for each may take memory."""
    starts, clusters, features = centres.shape
    return min(clusters, max(1, features // (MEMORY * starts)))


def distances(scores: Tensor, norms: Tensor) -> Tensor:
    """Return distances, from halved squares that lack the squared `norms` of points."""
    return (2 * scores).add_(norms).clamp_(min=0).sqrt_()


def _least_of_groups(scores: Tensor, groups: int) -> Tensor:
    clusters = scores.shape[2]
    if groups == clusters:
        return scores
    if groups == 1:
        return scores.amin(2, keepdim=True)
    whole = clusters - clusters % groups
    least = scores[..., :whole].unflatten(2, (-1, groups)).amin(2)
    rest = clusters - whole
    least[..., :rest] = torch.minimum(least[..., :rest], scores[..., whole:])
    return least
