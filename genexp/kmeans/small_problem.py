"""Nearest centres of few points, all in one product: a short call of numpy takes a fraction of one of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genexp.kmeans.blocks import Blocks
from genexp.kmeans.totals import Totals, label_type
from genexp.sharding import SINGLE_SHARD, current_shard

SCORES = 2**13  # distances: so many at most
FEATURES = 2**14  # of points


@dataclass(frozen=True)
class Gathered:
    """All points at hand, which spares gathering them for the next centres."""

    features: np.ndarray  # float64 (features + 1, points): the last feature is 1

    @classmethod
    def of(cls, blocks: Blocks) -> Gathered:
        """Return the points in `blocks`."""
        arrays = [block.numpy() for block in blocks]
        features = np.ones((arrays[0].shape[1] + 1, sum(map(len, arrays))))
        np.concatenate(arrays, out=features[:-1].T)
        return cls(features)

    def forget(self, starts: Tensor, points: Tensor) -> None:
        """Nothing concerns clusters."""

    def only(self, starts: Tensor) -> Gathered:
        """Return itself: starts share the points."""
        return self


def are_few(centres: Tensor, count: int) -> bool:
    """Return whether there is so little to compute that the calls themselves take the time."""
    starts, clusters, features = centres.shape
    small = count * starts * clusters <= SCORES and count * features <= FEATURES
    return small and centres.device.type == "cpu" and current_shard() == SINGLE_SHARD


def tally_few(blocks: Blocks, centres: Tensor, known: Totals | None) -> Totals:
    """Assign each point to its nearest centre. What is `known` of centres before spares gathering the points."""
    gathered = known.hints if known is not None and isinstance(known.hints, Gathered) else Gathered.of(blocks)
    return _Assigned.of(gathered, centres.numpy()).totals(gathered)


def fit_few(blocks: Blocks, centres: Tensor, iterations: int) -> tuple[Tensor, Totals, int]:
    """Assign all points, and do up to so many iterations, until one leaves a cluster empty.

    Returns the centres, their totals, and how many iterations are left to do: none once centres stay.
    """
    gathered, here = Gathered.of(blocks), centres.numpy()
    assigned = _Assigned.of(gathered, here)
    while iterations and assigned.counts.all():
        means = assigned.means(here.dtype)
        if means.tobytes() == here.tobytes():
            iterations = 0
        else:
            assigned, here, iterations = _Assigned.of(gathered, means), means, iterations - 1
    return torch.from_numpy(here), assigned.totals(gathered), iterations


class _Assigned(NamedTuple):  # made in half the time of a frozen dataclass
    """Points with their nearest centres."""

    members: np.ndarray  # float64 (starts, clusters, points): 1 for a cluster's points, else 0
    sums: np.ndarray  # float64 (starts, clusters, features + 1) of the clusters' points, and these counted

    @classmethod
    def of(cls, gathered: Gathered, centres: np.ndarray) -> _Assigned:
        starts, clusters, features = centres.shape
        weights = np.empty((starts * clusters, features + 1))
        rows = weights[:, :-1]
        rows[:] = centres.reshape(-1, features)
        weights[:, -1] = (rows * rows) @ np.full(features, -0.5)
        scores = np.dot(weights, gathered.features).reshape(starts, clusters, -1)  # the greater, the nearer
        members = (scores == scores.max(1, keepdims=True)).astype(np.float64)
        sums = members @ gathered.features.T
        if sums[..., -1].sum() != starts * gathered.features.shape[1]:  # a point is as near to another centre:
            members = np.eye(clusters)[scores.argmax(1)].swapaxes(1, 2)  # it goes to the first
            sums = members @ gathered.features.T
        return cls(members, sums)

    @property
    def counts(self) -> np.ndarray:
        return self.sums[..., -1]

    def means(self, dtype: np.dtype) -> np.ndarray:
        """Return the means (starts, clusters, features) of clusters that all have points."""
        return (self.sums[..., :-1] / self.sums[..., -1:]).astype(dtype)

    def totals(self, gathered: Gathered) -> Totals:
        clusters = self.members.shape[1]
        return Totals(
            torch.from_numpy(np.ascontiguousarray(self.sums[..., :-1])),
            torch.from_numpy(self.counts.astype(np.int64)),
            torch.from_numpy(np.arange(clusters) @ self.members).to(label_type(clusters)),
            hints=gathered,
        )
