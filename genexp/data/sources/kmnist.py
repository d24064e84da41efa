"""Kuzushiji-MNIST: 70,000 images of ten Japanese characters, 28×28 pixels (Clanuwat et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from genexp.data.dataset import Dataset
from genexp.data.registry import register_dataset
from genexp.data.sources._mnist import MnistConfig, load_mnist


@register_dataset("kmnist")
@dataclass
class KmnistConfig(MnistConfig):
    """conf/dataset/kmnist.yaml."""

    def load(self) -> Dataset:
        """Return images (n, 1, 28, 28): 60,000 for training, 10,000 for test. Raises DataError."""
        return load_mnist(self)
