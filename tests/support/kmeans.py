"""Points to cluster and their inertia."""

from __future__ import annotations

import torch
from torch import Tensor

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
