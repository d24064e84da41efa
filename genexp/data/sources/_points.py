"""Labeled point sets, generated from a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from genexp.config import require
from genexp.data.dataset import Split
from genexp.data.registry import DatasetConfig
from genexp.device import check_memory
from genexp.seeding import derive_seed


@dataclass
class PointsConfig(DatasetConfig):
    """Keys that all point sets share."""

    n_samples: int  # in the training split, and as many in the test split
    data_seed: int  # seed of the data, independent of the run's seed

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_samples >= 2, "n_samples", self.n_samples, "must be at least 2")
        require(0 <= self.data_seed < 2**32, "data_seed", self.data_seed, "must be in [0, 2³²)")

    @property
    def test_seed(self) -> int:
        """Seed of the test split, whose points are drawn independently of the training split."""
        return derive_seed("test", self.data_seed) % 2**32  # scikit-learn takes seeds of 32 bits


@dataclass
class NoisyCurvesConfig(PointsConfig):
    """Keys of noisy point sets on curves."""

    noise: float  # standard deviation of the Gaussian noise on each coordinate

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.noise >= 0, "noise", self.noise, "must be 0 or more")


def check_points_memory(config: PointsConfig, features: int = 2) -> None:
    """Raise ConfigError if the coordinates of both splits, float64, exceed the available memory."""
    size = f"dataset.n_samples={config.n_samples}" + (f" of {features} features" if features != 2 else "")
    check_memory(2 * config.n_samples * features * 8, size)


def make_point_split(points: Any, labels: Any) -> Split:
    """Return arrays (samples, features) and (samples,) as the streams "point", float32, and "label", int64."""
    return Split({"point": torch.from_numpy(points).float(), "label": torch.from_numpy(labels).long()})
