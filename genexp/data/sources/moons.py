"""Two interleaving noisy half-circles (sklearn.datasets.make_moons)."""

from __future__ import annotations

from dataclasses import dataclass

from genexp.data.dataset import Dataset, Split
from genexp.data.registry import register_dataset
from genexp.data.sources._points import NoisyCurvesConfig, check_points_memory, make_point_split


@register_dataset("moons")
@dataclass
class MoonsConfig(NoisyCurvesConfig):
    """conf/dataset/moons.yaml."""

    def load(self) -> Dataset:
        """Return points (n, 2) on two half-circles of radius 1."""
        from sklearn.datasets import make_moons

        check_points_memory(self)

        def make_split(seed: int) -> Split:
            return make_point_split(*make_moons(self.n_samples, noise=self.noise, random_state=seed))

        return Dataset(self.name, make_split(self.data_seed), make_split(self.test_seed), ("upper", "lower"))
