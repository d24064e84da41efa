"""Arrays in NumPy files, and their split into train and test."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genexp.config import require, suggest_choice
from genexp.data.registry import DatasetConfig
from genexp.data.sampling import permutation, stratified_split
from genexp.device import check_memory
from genexp.errors import DataError

READ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, zipfile.BadZipFile, zlib.error)


@dataclass
class ArrayFileConfig(DatasetConfig):
    """Keys of data sets that are one file of the user."""

    is_own_data = True

    file: str | None  # path; required
    label: str | None  # name of the labels; None: there are none
    test_fraction: float  # of the samples, in (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.file is not None, "file", "null", "must be a file")
        require(0 < self.test_fraction < 1, "test_fraction", self.test_fraction, "must be between 0 and 1")

    @property
    def path(self) -> Path:
        """Path of the file. Raises DataError if there is none."""
        path = Path(str(self.file)).expanduser()
        if not path.is_file():
            raise DataError(f"dataset.file={self.file}: not a file. Check the path.")
        return path

    def split_rows(self, count: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the train and the test indices, int64 (samples,) each, of the `count` rows of the file.

        `labels` are (samples,), or None. Raises DataError for fewer than two rows.
        """
        if count < 2:
            raise DataError(f"dataset.file={self.file}: must have at least 2 rows, not {count}. Add rows.")
        return split_indices(count, self.test_fraction, labels)


def load_arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of a .npz file by name, or that of a .npy file under the name "". Raises DataError.

    Arrays of Python objects, which could run code, are refused.
    """
    import numpy as np

    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                check_memory(
                    sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()), f"dataset.file={path}"
                )
            file.seek(0)
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {"": content}
            with content:
                return {name: content[name] for name in content.files}
    except READ_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"dataset.file={path}: not a readable NumPy file ({reason}). Restore the file.") from None


def select_array(arrays: Mapping[str, Any], name: str, key: str) -> Any:
    """Return an array by name. Raises DataError with the names that there are."""
    if name not in arrays:
        raise DataError(f"{key}={name}: no such array in the file. {suggest_choice(name, arrays)}")
    return arrays[name]


def encode_labels(values: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as class indices, int64 (samples,), and the names of the classes, sorted."""
    import numpy as np

    names, indices = np.unique(np.asarray(values), return_inverse=True)
    return torch.from_numpy(indices.reshape(-1)).long(), tuple(str(name) for name in names.tolist())


def split_indices(count: int, test_fraction: float, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the indices of the train and the test split, int64 (samples,) each, ascending.

    The test split is class-balanced if there are labels (samples,). Raises DataError for fewer than two samples.
    """
    if count < 2:
        raise DataError(f"{count} samples: at least 2 are required, one for each split. Use a larger file.")
    test_size = min(count - 1, max(1, round(count * test_fraction)))
    if labels is not None:
        return stratified_split(labels, test_size, "arrays")
    order = permutation(count, "arrays")
    return order[test_size:].sort().values, order[:test_size].sort().values
