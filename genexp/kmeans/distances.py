"""Squared distances of points to fixed centers, each less the point's own squared norm, halved.

What is left out is the same for all centers, so that matrix products find the nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_NUMPY_COLUMNS = 32  # columns


class CenterScores:
    """The distances of points to `centers` (starts, clusters, features)."""

    def __init__(self, centers: Tensor) -> None:
        self._shape = centers.shape[:2]
        self._rows = centers.flatten(0, 1)
        self._half_norms = self._rows.square().sum(1) / 2

    def __call__(self, points: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the distances of points (points, features) to all centers: (points, starts, clusters).

        They are written to the first of `room` (at least as many points, starts · clusters) where it is given.
        """
        out = None if out is None else out[: len(points)]
        scores = torch.addmm(self._half_norms, points, self._rows.T, alpha=-1, out=out)
        return scores.unflatten(1, self._shape)


def nearest_center(points: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest of centers (clusters, features) for each point: int64 (points,)."""
    return argmin_rows(CenterScores(centers.unsqueeze(0))(points).squeeze(1))


def argmin_rows(scores: Tensor) -> Tensor:
    """Return where the least of each row is, int64 (...,) of (..., columns): the first, of equal ones."""
    # torch finds the place of a minimum number by number; numpy takes many at a time, but a while for each row.
    if scores.device.type == "cpu" and scores.shape[-1] >= MIN_NUMPY_COLUMNS:
        return torch.from_numpy(scores.detach().numpy().argmin(-1))
    return scores.min(-1).indices
