"""CIFAR-10: 60,000 color photographs of ten classes, 32×32 pixels (Krizhevsky 2009)."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genexp.data.dataset import Dataset, Split
from genexp.data.registry import register_dataset
from genexp.data.sources._torchvision import (
    REMEDY,
    DataFiles,
    TorchvisionConfig,
    check_labels,
    find_or_download,
)
from genexp.errors import DataError

TRAIN_NAMES, TEST_NAME = tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch"
FILES = DataFiles("CIFAR10", "CIFAR10/cifar-10-batches-py", (*TRAIN_NAMES, TEST_NAME))
CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
PIXELS = (3, 32, 32)


@register_dataset("cifar10")
@dataclass
class Cifar10Config(TorchvisionConfig):
    """conf/dataset/cifar10.yaml."""

    def load(self) -> Dataset:
        """Return images (n, 3, 32, 32): 50,000 for training, 10,000 for test. Raises DataError."""
        folder = find_or_download(self, FILES)
        parts = [read_batch(folder / name) for name in TRAIN_NAMES]
        train = Split({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        return Dataset(self.name, train, Split(read_batch(folder / TEST_NAME)), CLASS_NAMES)


def read_batch(path: Path) -> dict[str, torch.Tensor]:
    """Return the streams "image", uint8 (n, 3, 32, 32), and "label" (n,) of a file, without running code of it.

    Raises DataError.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        pixels = torch.from_numpy(np.asarray(content["data"], np.uint8)).reshape(-1, *PIXELS)
        labels = torch.as_tensor(content["labels"], dtype=torch.int64)
    except Exception as error:  # a damaged pickle raises any exception
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path}: not a readable file of CIFAR-10 ({reason}). {REMEDY}") from None
    if labels.shape != (len(pixels),):
        raise DataError(f"{path}: {len(pixels)} images and {labels.numel()} labels. {REMEDY}")
    return {"image": pixels.contiguous(), "label": check_labels(labels, len(CLASS_NAMES), path)}


def _create_array(*_: Any) -> np.ndarray[Any, Any]:
    return np.empty(0, np.uint8)  # its shape and content follow in the file


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of plain values and NumPy arrays. A pickle can name any function: others are refused."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _create_array
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # of bytes, in pickles of Python 3
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}")
