"""Fashion-MNIST: 70,000 images of clothes, 28×28 pixels (Xiao, Rasul & Vollgraf 2017)."""

from __future__ import annotations

from dataclasses import dataclass

from genexp.data.dataset import Dataset
from genexp.data.registry import register_dataset
from genexp.data.sources._mnist import MnistConfig, load_mnist


@register_dataset("fashion_mnist")
@dataclass
class FashionMnistConfig(MnistConfig):
    """conf/dataset/fashion_mnist.yaml."""

    def load(self) -> Dataset:
        """Return images (n, 1, 28, 28): 60,000 for training, 10,000 for test. Raises DataError."""
        return load_mnist(self)
