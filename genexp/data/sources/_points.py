"""Points in space with a label each, drawn anew from a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from genexp.config import require
from genexp.data.dataset import Split
from genexp.data.registry import DatasetConfig
from genexp.seeding import derive_seed


@dataclass
class PointsConfig(DatasetConfig):
    """Keys that all point sets share."""

    n_samples: int  # of the training split, and of the test split again
    data_seed: int  # the run's seed does not change the data

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_samples >= 2, "n_samples", self.n_samples, "use at least 2")
        require(0 <= self.data_seed < 2**32, "data_seed", self.data_seed, "use a seed in [0, 2³²)")

    @property
    def test_seed(self) -> int:
        """Return the seed of the test split: the same kind of points, drawn independently."""
        return derive_seed("test", self.data_seed) % 2**32  # scikit-learn takes 32 bits


@dataclass
class NoisyCurvesConfig(PointsConfig):
    """Keys of point sets that lie on curves."""

    noise: float  # standard deviation of the Gaussian noise on each coordinate

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.noise >= 0, "noise", self.noise, "use 0 or more")


def make_point_split(points: Any, labels: Any) -> Split:
    """Return arrays (samples, features) and (samples,) as the streams "point" and "label"."""
    return Split({"point": torch.from_numpy(points).float(), "label": torch.from_numpy(labels).long()})
