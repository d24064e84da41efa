"""Bounds that spare comparisons: a point stays in its cluster while no other centre can have come nearer.

Each point has a margin by which any other centre is farther than its own, at least: the difference of the two
distances that Hamerly (2010) keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FEW = 0.08  # of the points changed: bounds pay
ROUNDING = 4e-6  # of the squared norms involved: how far a squared distance may be off in float32
ULP = 2**-23  # of a float32: more than it loses by one operation


@dataclass(frozen=True)
class Bounds:
    """What is known of each point."""

    margins: Tensor  # (points, starts) distances; below 0: another centre may be nearer

    @staticmethod
    def pay(changed: float) -> bool:
        """Return whether bounds are worth their price, where a part of the points changed their cluster before."""
        return changed < FEW

    @classmethod
    def unknown(cls, centres: Tensor, count: int) -> Bounds:
        """Return room for the bounds of `count` points that were not compared with `centres` yet."""
        return cls(centres.new_zeros(count, len(centres)))

    def at(self, place: slice | Tensor) -> Bounds:
        """Return the bounds of the points at `place`: a view at a slice, and a copy at indices."""
        return Bounds(self.margins[place] if isinstance(place, slice) else self.margins.index_select(0, place))

    def forget(self, starts: Tensor, points: Tensor) -> None:
        """Drop what concerns the clusters of `points`, in `starts`: these were given to others."""
        self.margins[points, starts] = -torch.inf

    def only(self, starts: Tensor) -> Bounds:
        """Return what concerns `starts` (indices) alone."""
        return Bounds(self.margins[:, starts])

    def put(self, place: Tensor, new: Bounds) -> None:
        """Note the `new` bounds of the points at `place`."""
        self.margins.index_copy_(0, place, new.margins)

    def loosen(self, moves: Tensor, labels: Tensor) -> Tensor:
        """Follow centres that moved so far (starts, clusters), for points with `labels` (starts, points).

        Returns which points are to be compared anew.
        """
        starts, clusters = moves.shape
        first = torch.arange(0, starts * clusters, clusters, device=moves.device).unsqueeze(1)
        lost = moves + moves.amax(1, keepdim=True)  # the own centre may have gone, and another have come
        self.margins.mul_(1 - ULP).sub_(lost.flatten()[(labels + first).T])
        return (self.margins < 0).any(1).nonzero().squeeze(1)

    def measure(self, scores: Tensor, labels: Tensor, norms: Tensor, largest: Tensor) -> None:
        """Note what is known of points that were just compared with all centres and have got `labels`.

        `scores` (points, starts, clusters) are halved squared distances less the points' own squared `norms`
        (points,); those to the points' own centres are lost in here. `largest` is the largest squared norm of a
        centre, (starts,).
        """
        own = labels.T.long().unsqueeze(2)
        nearest = scores.gather(2, own).squeeze(2)
        self.replace(nearest, scores.scatter_(2, own, torch.inf).amin(2), norms, largest)

    def replace(self, own: Tensor, others: Tensor, norms: Tensor, largest: Tensor) -> None:
        """Note that own centres are at most so far, and `others` at least: scores (points, starts) both.

        Where `own` is -inf it is not known yet: `settle` is to follow.
        """
        squares = norms.unsqueeze(1)
        rounding = ROUNDING * (squares + largest)
        torch.sub(_distances(others, squares - rounding), _distances(own, squares + rounding), out=self.margins)

    def settle(self, keys: Tensor, own: Tensor, others: Tensor, norms: Tensor, largest: Tensor) -> None:
        """Note how far own centres are which were not known, and that `others` are no nearer than so.

        Both are scores (keys,); `keys` number points, with their `norms` (keys,), and starts together.
        """
        rounding = ROUNDING * (norms + largest)
        margins = self.margins.view(-1)
        least = torch.minimum(margins[keys], _distances(others, norms - rounding))
        margins[keys] = least - _distances(own, norms + rounding)


def moves(before: Tensor, after: Tensor) -> Tensor:
    """Return how far centres (starts, clusters, features) moved at most: (starts, clusters)."""
    return torch.linalg.vector_norm(after - before, dim=2).mul_(1 + 1e-5)


def _distances(scores: Tensor, norms: Tensor) -> Tensor:
    """Return distances, from halved squares that lack the squared `norms` of points."""
    return (2 * scores).add_(norms).clamp_(min=0).sqrt_()
