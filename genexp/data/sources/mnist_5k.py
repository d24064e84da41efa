"""Subset of MNIST that is part of the package: 5,000 digits, 500 of each class (license: mnist_5k.LICENSE)."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genexp.data.dataset import Dataset
from genexp.data.registry import register_dataset
from genexp.data.sources._images import HeldOutConfig
from genexp.data.sources._labeled_images import DIGIT_NAMES, make_labeled_dataset
from genexp.errors import DataError

DATA_FILE = Path(__file__).with_name("mnist_5k.npz")
TEST_COUNT = 1000  # 100 of each class


@register_dataset("mnist_5k")
@dataclass
class Mnist5kConfig(HeldOutConfig):
    """conf/dataset/mnist_5k.yaml."""

    def load(self) -> Dataset:
        """Return images (n, 1, 28, 28): 4,000 for training, 1,000 for test. Raises DataError."""
        images, labels = read_digits(DATA_FILE)
        return make_labeled_dataset(self.name, images, labels, test_count=TEST_COUNT, class_names=DIGIT_NAMES)


def read_digits(path: Path) -> tuple[Tensor, Tensor]:
    """Return the images, uint8 (5000, 1, 28, 28), and labels, uint8 (5000,), in `path`. Raises DataError."""
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
        return images.reshape(5000, 1, 28, 28), labels.reshape(5000)
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not readable ({reason}). Reinstall genexp.") from None
