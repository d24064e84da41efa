"""Points to cluster and their inertia."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genexp.kmeans.hamerly_bounds import HamerlyBounds
from genexp.kmeans.lloyd import assign, lloyd_step
from tests.support.compose import compose_config
from tests.support.datasets import load_values

BLOCK_ROWS = 500


def load_points(name: str, *overrides: str) -> Tensor:
    """Return a data set's training points (samples, features)."""
    streams = load_values(compose_config("model=kmeans", f"dataset={name}", *overrides).dataset).train.streams
    stream = streams["point"] if "point" in streams else streams["image"]
    assert isinstance(stream, Tensor)
    return stream.flatten(1) / 255 if stream.dtype == torch.uint8 else stream


def compute_inertia(points: Tensor, centers: Tensor) -> float:
    """Return the inertia in float64, from centers (clusters, features)."""
    return float(torch.cdist(points.double(), centers.double()).amin(1).square().sum())


def make_points(count: int, features: int) -> Tensor:
    """Return points (count, features) of seven Gaussian clusters of different width."""
    generator = torch.Generator().manual_seed(1)
    cluster_means = torch.randn(7, features, generator=generator) * 4
    labels = torch.randint(7, (count,), generator=generator)
    return cluster_means[labels] + torch.randn(count, features, generator=generator) * (1 + labels[:, None] / 3)


def assert_pruning_is_exact(
    points: Tensor, centers: Tensor, iterations: int, create_bounds: Callable[[], HamerlyBounds]
) -> None:
    """Iterate with bounds, and with bounds that are new in each step, which prune nothing.

    The results are bit-identical, and each label is the nearest center.
    """
    blocks, count = points.split(700), len(points)
    bounds = create_bounds()
    pruned, exhaustive = assign(blocks, centers, count, bounds), assign(blocks, centers, count, create_bounds())
    pruned_centers = exhaustive_centers = centers
    for _ in range(iterations):
        pruned_centers, pruned = lloyd_step(blocks, pruned_centers, pruned, bounds)
        exhaustive_centers, exhaustive = lloyd_step(blocks, exhaustive_centers, exhaustive, create_bounds())
        assert torch.equal(pruned_centers, exhaustive_centers)
        assert torch.equal(pruned.labels, exhaustive.labels)
        assert torch.equal(pruned.sums, exhaustive.sums)
        for start, labels in zip(pruned_centers, pruned.labels, strict=True):
            distances = torch.cdist(points.double(), start.double()).square()
            excess = distances.gather(1, labels.long().unsqueeze(1)).squeeze(1) - distances.amin(1)
            scale = points.double().square().sum(1) + start.double().square().sum(1).max()
            assert (excess <= 1e-6 * scale).all()


def record_call_costs(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, cost: Callable[..., int]
) -> list[int]:
    """Return a list to which each call of a function appends its cost, computed from the arguments."""
    function, costs = getattr(owner, name), []

    def wrapper(*args: object) -> object:
        costs.append(cost(*args))
        return function(*args)

    monkeypatch.setattr(owner, name, wrapper)
    return costs
