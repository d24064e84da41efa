"""Nearest centres of few points, all in one product: a short call of numpy takes a fraction of one of torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genexp.clustering.blocks import Blocks
from genexp.clustering.totals import Totals, label_type
from genexp.whole_batch import ALL, here

SCORES = 2**13  # distances: so many at most
FEATURES = 2**14  # of points


@dataclass(frozen=True)
class Gathered:
    """All points at hand, which spares gathering them for the next centres."""

    points: np.ndarray  # float64 (points, features + 1): the last feature is 1

    @classmethod
    def of(cls, blocks: Blocks) -> Gathered:
        """Return the points in `blocks`."""
        arrays = [block.numpy() for block in blocks]
        points = np.ones((sum(map(len, arrays)), arrays[0].shape[1] + 1))
        np.concatenate(arrays, out=points[:, :-1])
        return cls(points)

    def forget(self, starts: Tensor, points: Tensor) -> None:
        """Nothing concerns clusters."""

    def only(self, starts: Tensor) -> Gathered:
        """Return itself: starts share the points."""
        return self


def are_few(centres: Tensor, count: int) -> bool:
    """Return whether there is so little to compute that the calls themselves take the time."""
    starts, clusters, features = centres.shape
    small = count * starts * clusters <= SCORES and count * features <= FEATURES
    return small and centres.device.type == "cpu" and here() == ALL


def tally_few(blocks: Blocks, centres: Tensor, known: Totals | None) -> Totals:
    """Assign each point to its nearest centre. What is `known` of centres before spares gathering the points."""
    gathered = known.hints if known is not None and isinstance(known.hints, Gathered) else Gathered.of(blocks)
    points = gathered.points
    starts, clusters, features = centres.shape
    weights = np.empty((starts * clusters, features + 1))
    rows = weights[:, :-1]
    rows[:] = centres.view(-1, features).numpy()
    weights[:, -1] = np.einsum("rf,rf->r", rows, rows) * -0.5
    scores = (weights @ points.T).reshape(starts, clusters, -1)  # the greater, the nearer
    members = (scores == scores.max(1, keepdims=True)).astype(np.float64)
    sums = members @ points
    if sums[..., -1].sum() != starts * len(points):  # a point is as near to another centre: it goes to the first
        members = np.eye(clusters)[scores.argmax(1)].swapaxes(1, 2)
        sums = members @ points
    labels = np.arange(clusters) @ members
    return Totals(
        torch.from_numpy(np.ascontiguousarray(sums[..., :-1])),
        torch.from_numpy(sums[..., -1].astype(np.int64)),
        torch.from_numpy(labels).to(label_type(clusters)),
        hints=gathered,
    )
