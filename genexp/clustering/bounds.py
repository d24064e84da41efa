"""Bounds that spare comparisons: a point stays in its cluster while no other centre can have come nearer.

Each point knows how far its own centre is at most, and how far at least any other (Hamerly 2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FEW = 0.08  # of the points changed: bounds pay
ROUNDING = 4e-6  # of the squared norms involved: how far a squared distance may be off in float32


@dataclass(frozen=True)
class Bounds:
    """What is known of each point."""

    upper: Tensor  # (points, starts) the distance to a point's own centre is at most so large
    lower: Tensor  # (points, starts) those to all others are at least so large
    norms: Tensor  # (points,) squared norms

    @staticmethod
    def pay(changed: float) -> bool:
        """Return whether bounds are worth their price, where a part of the points changed their cluster before."""
        return changed < FEW

    @classmethod
    def unknown(cls, centres: Tensor, count: int) -> Bounds:
        """Return room for the bounds of `count` points that were not compared with `centres` yet."""
        new = centres.new_zeros
        return cls(new(count, len(centres)), new(count, len(centres)), new(count))

    def at(self, place: slice | Tensor) -> Bounds:
        """Return the bounds of the points at `place`: a view at a slice, and a copy at indices."""
        if isinstance(place, slice):
            return Bounds(self.upper[place], self.lower[place], self.norms[place])
        parts = (part.index_select(0, place) for part in (self.upper, self.lower, self.norms))
        return Bounds(*parts)

    def forget(self, starts: Tensor, points: Tensor) -> None:
        """Drop what concerns the clusters of `points`, in `starts`: these were given to others."""
        self.upper[points, starts] = torch.inf

    def only(self, starts: Tensor) -> Bounds:
        """Return what concerns `starts` (indices) alone."""
        return Bounds(self.upper[:, starts], self.lower[:, starts], self.norms)

    def put(self, place: Tensor, new: Bounds) -> None:
        """Note the `new` bounds of the points at `place`."""
        self.upper.index_copy_(0, place, new.upper)
        self.lower.index_copy_(0, place, new.lower)

    def loosen(self, moves: Tensor, labels: Tensor) -> Tensor:
        """Follow centres that moved so far (starts, clusters), for points with `labels` (starts, points).

        Returns which points are to be compared anew.
        """
        starts, clusters = moves.shape
        first = torch.arange(0, starts * clusters, clusters, device=moves.device).unsqueeze(1)
        self.upper.add_(moves.flatten()[(labels + first).T])
        self.lower.sub_(moves.amax(1))
        return (self.lower < self.upper).any(1).nonzero().squeeze(1)

    def measure(self, scores: Tensor, labels: Tensor, largest: Tensor) -> None:
        """Note what is known of points that were just compared with all centres and have got `labels`.

        `scores` (points, starts, clusters) are halved squared distances less the points' own squared norms; those
        to the points' own centres are lost in here. `largest` is the largest squared norm of a centre, (starts,).
        """
        own = labels.T.long().unsqueeze(2)
        nearest = scores.gather(2, own).squeeze(2)
        self.replace(nearest, scores.scatter_(2, own, torch.inf).amin(2), largest)

    def replace(self, own: Tensor, others: Tensor, largest: Tensor) -> None:
        """Note how far the own centres are at most, and `others` at least: scores (points, starts) both."""
        norms = self.norms.unsqueeze(1)
        rounding = ROUNDING * (norms + largest)
        self.upper.copy_(_distances(own, norms + rounding))
        self.lower.copy_(_distances(others, norms - rounding))

    def tighten(self, keys: Tensor, own: Tensor, others: Tensor, largest: Tensor) -> None:
        """Note how far some own centres are, and that `others` are no nearer than so: scores (keys,) both.

        `keys` number points and starts together.
        """
        norms = self.norms[keys // self.upper.shape[1]]
        rounding = ROUNDING * (norms + largest)
        lower = self.lower.view(-1)
        self.upper.view(-1)[keys] = _distances(own, norms + rounding)
        lower[keys] = torch.minimum(lower[keys], _distances(others, norms - rounding))


def moves(before: Tensor, after: Tensor) -> Tensor:
    """Return how far centres (starts, clusters, features) moved at most: (starts, clusters)."""
    return torch.linalg.vector_norm(after - before, dim=2).mul_(1 + 1e-5)


def _distances(scores: Tensor, norms: Tensor) -> Tensor:
    """Return distances, from halved squares that lack the squared `norms` of points."""
    return (2 * scores).add_(norms).clamp_(min=0).sqrt_()
