"""QMNIST: MNIST with all 60,000 test digits, 28×28 pixels (Yadav & Bottou 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from genexp.data.dataset import Dataset
from genexp.data.registry import register_dataset
from genexp.data.sources._labeled_images import DIGIT_NAMES
from genexp.data.sources._mnist import IdxDataset, load_idx_dataset
from genexp.data.sources._torchvision import DataFiles, TorchvisionConfig

FILES = DataFiles(
    "QMNIST",
    "QMNIST/raw",
    tuple(
        f"qmnist-{part}-{content}"
        for part in ("train", "test")
        for content in ("images-idx3-ubyte", "labels-idx2-int")  # the first of eight numbers is the class
    ),
    downloads=({"what": "train"}, {"what": "test"}),
)


@register_dataset("qmnist")
@dataclass
class QmnistConfig(TorchvisionConfig):
    """conf/dataset/qmnist.yaml."""

    def load(self) -> Dataset:
        """Return images (n, 1, 28, 28): 60,000 for training, 60,000 for test. Raises DataError."""
        return load_idx_dataset(self, IdxDataset(FILES, DIGIT_NAMES))
