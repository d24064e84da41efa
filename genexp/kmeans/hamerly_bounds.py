"""Bounds that spare comparisons: a point stays in its cluster while no other center can have come nearer.

Each point has a margin by which any other center is farther than its own, at least: the difference of the two
distances that Hamerly (2010) keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_CHANGED_FRACTION = 0.08  # of the points changed: bounds pay
RELATIVE_ROUNDING = 4e-6  # of the squared norms involved: how far a squared distance may be off in float32
FLOAT32_EPSILON = 2**-23  # of a float32: more than it loses by one operation


@dataclass(frozen=True)
class HamerlyBounds:
    """What is known of each point."""

    margins: Tensor  # (points, starts) distances; below 0: another center may be nearer

    @staticmethod
    def is_worthwhile(changed_fraction: float) -> bool:
        """Return whether bounds are worth their price, where a part of the points changed their cluster before."""
        return changed_fraction < MAX_CHANGED_FRACTION

    @classmethod
    def allocate(cls, centers: Tensor, count: int) -> HamerlyBounds:
        """Return room for the bounds of `count` points that were not compared with `centers` yet."""
        return cls(centers.new_zeros(count, len(centers)))

    def select(self, index: slice | Tensor) -> HamerlyBounds:
        """Return the bounds of the points at `place`: a view at a slice, and a copy at indices."""
        return HamerlyBounds(
            self.margins[index] if isinstance(index, slice) else self.margins.index_select(0, index)
        )

    def invalidate(self, starts: Tensor, points: Tensor) -> None:
        """Drop what concerns the clusters of `points`, in `starts`: these were given to others."""
        self.margins[points, starts] = -torch.inf

    def select_starts(self, starts: Tensor) -> HamerlyBounds:
        """Return what concerns `starts` (indices) alone."""
        return HamerlyBounds(self.margins[:, starts])

    def put(self, index: Tensor, bounds: HamerlyBounds) -> None:
        """Note the `new` bounds of the points at `place`."""
        self.margins.index_copy_(0, index, bounds.margins)

    def shift_bounds(self, shift_norms: Tensor, labels: Tensor) -> Tensor:
        """Follow centers that moved so far (starts, clusters), for points with `labels` (starts, points).

        Returns which points are to be compared anew.
        """
        starts, clusters = shift_norms.shape
        offsets = torch.arange(0, starts * clusters, clusters, device=shift_norms.device).unsqueeze(1)
        decrease = shift_norms + shift_norms.amax(
            1, keepdim=True
        )  # the own center may have gone, and another have come
        self.margins.mul_(1 - FLOAT32_EPSILON).sub_(decrease.flatten()[(labels + offsets).T])
        return (self.margins < 0).any(1).nonzero().squeeze(1)

    def set_from_scores(
        self, scores: Tensor, labels: Tensor, squared_norms: Tensor, max_squared_norm: Tensor
    ) -> None:
        """Note what is known of points that were just compared with all centers and have got `labels`.

        `scores` (points, starts, clusters) are halved squared distances less the points' own squared `norms`
        (points,); those to the points' own centers are lost in here. `largest` is the largest squared norm of a
        center, (starts,).
        """
        own_index = labels.T.long().unsqueeze(2)
        own_scores = scores.gather(2, own_index).squeeze(2)
        self.set_all_bounds(
            own_scores, scores.scatter_(2, own_index, torch.inf).amin(2), squared_norms, max_squared_norm
        )

    def set_all_bounds(
        self, own_scores: Tensor, other_scores: Tensor, squared_norms: Tensor, max_squared_norm: Tensor
    ) -> None:
        """Note that own centers are at most so far, and `others` at least: scores (points, starts) both.

        Where `own` is -inf it is not known yet: `settle` is to follow.
        """
        point_squared_norms = squared_norms.unsqueeze(1)
        rounding = RELATIVE_ROUNDING * (point_squared_norms + max_squared_norm)
        torch.sub(
            _distances_from_scores(other_scores, point_squared_norms - rounding),
            _distances_from_scores(own_scores, point_squared_norms + rounding),
            out=self.margins,
        )

    def set_bounds(
        self,
        keys: Tensor,
        own_scores: Tensor,
        other_scores: Tensor,
        squared_norms: Tensor,
        max_squared_norm: Tensor,
    ) -> None:
        """Note how far own centers are which were not known, and that `others` are no nearer than so.

        Both are scores (keys,); `keys` number points, with their `norms` (keys,), and starts together.
        """
        rounding = RELATIVE_ROUNDING * (squared_norms + max_squared_norm)
        margins = self.margins.view(-1)
        lower_bounds = torch.minimum(margins[keys], _distances_from_scores(other_scores, squared_norms - rounding))
        margins[keys] = lower_bounds - _distances_from_scores(own_scores, squared_norms + rounding)


def center_shift(old_centers: Tensor, new_centers: Tensor) -> Tensor:
    """Return how far centers (starts, clusters, features) moved at most: (starts, clusters)."""
    return torch.linalg.vector_norm(new_centers - old_centers, dim=2).mul_(1 + 1e-5)


def _distances_from_scores(scores: Tensor, squared_norms: Tensor) -> Tensor:
    """Return distances, from halved squares that lack the squared `norms` of points."""
    return (2 * scores).add_(squared_norms).clamp_(min=0).sqrt_()
