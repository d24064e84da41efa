"""SVHN: 99,289 house numbers in color, 32×32 pixels (Netzer et al. 2011)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from genexp.data.dataset import Dataset, Split
from genexp.data.registry import register_dataset
from genexp.data.sources._labeled_images import DIGIT_NAMES
from genexp.data.sources._torchvision import (
    REMEDY,
    DataFiles,
    TorchvisionConfig,
    check_labels,
    find_or_download,
)
from genexp.device import check_memory
from genexp.errors import DataError

FILES = DataFiles(
    "SVHN",
    "SVHN",
    ("train_32x32.mat", "test_32x32.mat"),
    downloads=({"split": "train"}, {"split": "test"}),
)


@register_dataset("svhn")
@dataclass
class SvhnConfig(TorchvisionConfig):
    """conf/dataset/svhn.yaml."""

    def load(self) -> Dataset:
        """Return images (n, 3, 32, 32): 73,257 for training, 26,032 for test. Raises DataError."""
        folder = find_or_download(self, FILES)
        train, test = (read_mat(folder / name) for name in FILES.names)
        return Dataset(self.name, train, test, DIGIT_NAMES)


def read_mat(path: Path) -> Split:
    """Return the images X (height, width, 3, n) and the labels y (n, 1) of a MATLAB file. Raises DataError."""
    from scipy.io import loadmat, whosmat

    try:
        shapes = {name: shape for name, shape, _ in whosmat(path)}
        needed_bytes = sum(map(prod, shapes.values()))
    except Exception as error:  # scipy raises any exception for damaged files
        raise _build_error(path, error) from None
    check_memory(needed_bytes, str(path))
    try:
        content = loadmat(path, variable_names=["X", "y"])
        pixels, labels = torch.from_numpy(content["X"]), torch.from_numpy(content["y"]).reshape(-1)
    except Exception as error:
        raise _build_error(path, error) from None
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[2] != 3 or pixels.shape[3] != len(labels):
        raise DataError(f"{path}: not images (height, width, 3, n) with n labels. {REMEDY}")
    labels = check_labels(labels % 10, len(DIGIT_NAMES), path)  # the file has 10 for the digit 0
    return Split({"image": pixels.permute(3, 2, 0, 1).contiguous(), "label": labels})


def _build_error(path: Path, error: Exception) -> DataError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"{path}: not readable as a MATLAB file ({reason}). {REMEDY}")
