"""Gaussian blobs around random centers (sklearn.datasets.make_blobs)."""

from __future__ import annotations

from dataclasses import dataclass

from genexp.config import require
from genexp.data.dataset import Dataset
from genexp.data.registry import register_dataset
from genexp.data.sources._points import PointsConfig, check_points_memory, make_point_split


@register_dataset("blobs")
@dataclass
class BlobsConfig(PointsConfig):
    """conf/dataset/blobs.yaml."""

    centers: int  # number of blobs; their centers lie in [-10, 10] on each axis
    features: int  # dimensions of the points
    cluster_std: float  # standard deviation of each blob on each axis

    def __post_init__(self) -> None:
        super().__post_init__()
        is_valid = 1 <= self.centers <= self.n_samples
        require(is_valid, "centers", self.centers, f"must be at least 1, and at most n_samples={self.n_samples}")
        require(self.features >= 1, "features", self.features, "must be at least 1")
        require(self.cluster_std >= 0, "cluster_std", self.cluster_std, "must be 0 or more")

    def load(self) -> Dataset:
        """Return points (n, features). The test split is drawn around the same centers."""
        from sklearn.datasets import make_blobs

        check_points_memory(self, self.features)
        points, labels, centers = make_blobs(
            self.n_samples,
            self.features,
            centers=self.centers,
            cluster_std=self.cluster_std,
            random_state=self.data_seed,
            return_centers=True,
        )
        test_points, test_labels = make_blobs(
            self.n_samples, centers=centers, cluster_std=self.cluster_std, random_state=self.test_seed
        )
        names = tuple(f"blob {number}" for number in range(self.centers))
        return Dataset(
            self.name, make_point_split(points, labels), make_point_split(test_points, test_labels), names
        )
