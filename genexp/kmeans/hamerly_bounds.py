"""Bounds of Hamerly (2010) that prove that a point stays in its cluster.

Hamerly keeps an upper bound on the distance to the own center, and a lower bound on that to any other center. The
margin stored here is the lower bound minus the upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_CHANGED_FRACTION = 0.08  # bounds save time below this fraction of changed labels
RELATIVE_ROUNDING = 4e-6  # largest float32 error of a squared distance, relative to the sum of the squared norms
FLOAT32_EPSILON = 2**-23  # machine epsilon: more than the relative error of one operation


@dataclass(frozen=True)
class HamerlyBounds:
    """Margin of each point in each start."""

    margins: Tensor  # (points, starts), in units of distance; below 0: another center may be nearer

    @staticmethod
    def is_worthwhile(changed_fraction: float) -> bool:
        """Return whether bounds save time after an assignment that changed this fraction of the labels."""
        return changed_fraction < MAX_CHANGED_FRACTION

    @classmethod
    def allocate(cls, centers: Tensor, num_points: int) -> HamerlyBounds:
        """Return bounds of `num_points` points, to be set by the first assignment to `centers`."""
        return cls(centers.new_zeros(num_points, len(centers)))

    def select(self, index: slice | Tensor) -> HamerlyBounds:
        """Return the bounds of the points `index`: a view for a slice, a copy for int64 indices."""
        return HamerlyBounds(
            self.margins[index] if isinstance(index, slice) else self.margins.index_select(0, index)
        )

    def invalidate(self, start_indices: Tensor, point_indices: Tensor) -> None:
        """Set the margins of these pairs of start and point to -inf: other code changed their labels.

        `start_indices` and `point_indices` are int64 (pairs,).
        """
        self.margins[point_indices, start_indices] = -torch.inf

    def select_starts(self, start_indices: Tensor) -> HamerlyBounds:
        """Return the bounds of `start_indices` only: int64 indices (starts,)."""
        return HamerlyBounds(self.margins[:, start_indices])

    def put(self, index: Tensor, bounds: HamerlyBounds) -> None:
        """Copy `bounds` to the points `index`: int64 (points,)."""
        self.margins.index_copy_(0, index, bounds.margins)

    def shift_bounds(self, shift_norms: Tensor, labels: Tensor) -> Tensor:
        """Decrease the margins after centers moved. Return the points that may change cluster: int64 (points,).

        `shift_norms` (starts, clusters) are upper bounds on the distances that centers moved. `labels` is
        (starts, points).
        """
        starts, clusters = shift_norms.shape
        offsets = torch.arange(0, starts * clusters, clusters, device=shift_norms.device).unsqueeze(1)
        # The own center may have moved away from the point, and any other toward it.
        decrease = shift_norms + shift_norms.amax(1, keepdim=True)
        self.margins.mul_(1 - FLOAT32_EPSILON).sub_(decrease.flatten()[(labels + offsets).T])
        return (self.margins < 0).any(1).nonzero().squeeze(1)

    def set_from_scores(
        self, scores: Tensor, labels: Tensor, squared_norms: Tensor, max_squared_norm: Tensor
    ) -> None:
        """Set the bounds of points from their scores for all centers and their new `labels` (starts, points).

        `scores` (points, starts, clusters) are those of `genexp.kmeans.distances`. The entries of the own centers
        are overwritten. `squared_norms` (points,) belong to the points. `max_squared_norm` (starts,) is the
        largest squared norm of a center.
        """
        own_index = labels.T.long().unsqueeze(2)
        own_scores = scores.gather(2, own_index).squeeze(2)
        self.set_all_bounds(
            own_scores, scores.scatter_(2, own_index, torch.inf).amin(2), squared_norms, max_squared_norm
        )

    def set_all_bounds(
        self, own_scores: Tensor, other_scores: Tensor, squared_norms: Tensor, max_squared_norm: Tensor
    ) -> None:
        """Set all margins from upper bounds `own_scores` and lower bounds `other_scores`, both (points, starts).

        An own score of -inf is unknown: `set_bounds` must follow. `squared_norms` is (points,),
        `max_squared_norm` () or (starts,).
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
        flat_indices: Tensor,
        own_scores: Tensor,
        other_scores: Tensor,
        squared_norms: Tensor,
        max_squared_norm: Tensor,
    ) -> None:
        """Complete the margins of pairs of point and start whose own score was unknown in `set_all_bounds`.

        `flat_indices` are the flat indices of the pairs in `margins`: int64 (keys,). `own_scores`, `other_scores`
        and the points' `squared_norms` are (keys,). `other_scores` are lower bounds for the remaining centers.
        """
        rounding = RELATIVE_ROUNDING * (squared_norms + max_squared_norm)
        margins = self.margins.view(-1)
        lower_bounds = torch.minimum(
            margins[flat_indices], _distances_from_scores(other_scores, squared_norms - rounding)
        )
        margins[flat_indices] = lower_bounds - _distances_from_scores(own_scores, squared_norms + rounding)


def center_shift_norms(old_centers: Tensor, new_centers: Tensor) -> Tensor:
    """Return upper bounds on the distances moved: centers (starts, clusters, features) → (starts, clusters)."""
    return torch.linalg.vector_norm(new_centers - old_centers, dim=2).mul_(1 + 1e-5)


def _distances_from_scores(scores: Tensor, squared_norms: Tensor) -> Tensor:
    """Return distances from scores and the squared norms of the points, in the shape of `scores`."""
    return (2 * scores).add_(squared_norms).clamp_(min=0).sqrt_()
