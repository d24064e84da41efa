"""Scores that rank centers by their distance to a point.

The score of point x and center c is |c|²/2 - x·c. This is half of the squared distance, minus half of |x|². The
omitted term is the same for all centers, so the nearest center has the smallest score. One matrix product computes
the scores of many points.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_NUMPY_COLUMNS = 32  # fewest columns for which NumPy finds a minimum faster than torch on the CPU


class CenterScorer:
    """Scores of points for fixed `centers` (starts, clusters, features)."""

    def __init__(self, centers: Tensor) -> None:
        self._shape = centers.shape[:2]
        self._flat_centers = centers.flatten(0, 1)
        self._half_norms = self._flat_centers.square().sum(1) / 2

    def __call__(self, points: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the scores of points (points, features) for all centers: (points, starts, clusters).

        They are written to the first rows of `out`, if given. It has starts · clusters columns.
        """
        out = None if out is None else out[: len(points)]
        scores = torch.addmm(self._half_norms, points, self._flat_centers.T, alpha=-1, out=out)
        return scores.unflatten(1, self._shape)


def nearest_center(points: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest center of each point: int64 (points,).

    `points` is (points, features), `centers` (clusters, features).
    """
    return argmin_rows(CenterScorer(centers.unsqueeze(0))(points).squeeze(1))


def argmin_rows(scores: Tensor) -> Tensor:
    """Return the index of the smallest score of each row: (..., columns) → int64 (...).

    Of equal scores, the first wins.
    """
    # On the CPU torch finds the index element by element. NumPy is vectorized, with a fixed cost per row.
    if scores.device.type == "cpu" and scores.shape[-1] >= MIN_NUMPY_COLUMNS:
        return torch.from_numpy(scores.detach().numpy().argmin(-1))
    return scores.min(-1).indices
