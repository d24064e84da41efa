"""MNIST: 70,000 handwritten digits of 28×28 pixels (LeCun, Cortes & Burges)."""

from __future__ import annotations

from dataclasses import dataclass

from genexp.data.dataset import Dataset
from genexp.data.registry import register_dataset
from genexp.data.sources._mnist import MnistConfig, load_mnist


@register_dataset("mnist")
@dataclass
class MnistFilesConfig(MnistConfig):
    """conf/dataset/mnist.yaml."""

    def load(self) -> Dataset:
        """Return images (n, 1, 28, 28): 60,000 for training, 10,000 for test. Raises DataError."""
        return load_mnist(self)
