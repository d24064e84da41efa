"""Two concentric noisy circles (sklearn.datasets.make_circles)."""

from __future__ import annotations

from dataclasses import dataclass

from genexp.config import require
from genexp.data.dataset import Dataset, Split
from genexp.data.registry import register_dataset
from genexp.data.sources._points import NoisyCurvesConfig, check_points_memory, make_point_split


@register_dataset("circles")
@dataclass
class CirclesConfig(NoisyCurvesConfig):
    """conf/dataset/circles.yaml."""

    factor: float  # radius of the inner circle; the outer one's is 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.factor < 1, "factor", self.factor, "must be a radius in [0, 1)")

    def load(self) -> Dataset:
        """Return points (n, 2) on two circles around the origin."""
        from sklearn.datasets import make_circles

        check_points_memory(self)

        def make_split(seed: int) -> Split:
            return make_point_split(
                *make_circles(self.n_samples, noise=self.noise, factor=self.factor, random_state=seed)
            )

        return Dataset(self.name, make_split(self.data_seed), make_split(self.test_seed), ("outer", "inner"))
