"""MNIST and data sets in its format: IDX files of images and labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from genexp.data.dataset import Dataset, Split
from genexp.data.sources._idx import read_idx
from genexp.data.sources._labeled_images import DIGIT_NAMES
from genexp.data.sources._torchvision import (
    REMEDY,
    DataFiles,
    TorchvisionConfig,
    check_labels,
    find_file,
    find_or_download,
)
from genexp.errors import DataError

FILE_NAMES = tuple(
    f"{split}-{content}-ubyte" for split in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)


@dataclass
class MnistConfig(TorchvisionConfig):
    """conf/dataset/mnist.yaml, fashion_mnist.yaml and kmnist.yaml."""


@dataclass(frozen=True)
class IdxDataset:
    """Properties of one data set of four IDX files."""

    files: DataFiles
    class_names: tuple[str, ...]
    test_labels_md5: str | None = None  # of the test labels, without the file's header; None: unknown
    first_label: int = 0  # label of the first class in the files
    is_transposed: bool = False  # whether rows and columns of the images are exchanged in the files


FASHION_CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
IDX_DATASETS = {  # data sets whose files have the names of MNIST
    "mnist": IdxDataset(
        DataFiles("MNIST", "MNIST/raw", FILE_NAMES), DIGIT_NAMES, "073c3904dfbd3e141ff8aa01cfde6b15"
    ),
    "fashion_mnist": IdxDataset(
        DataFiles(
            "FashionMNIST",
            "FashionMNIST/raw",
            FILE_NAMES,
            system_dirs=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's package dataset-fashion-mnist
        ),
        FASHION_CLASS_NAMES,
        "8dea97a4e78c1bd1b5a6e8efbb870b6e",
    ),
    "kmnist": IdxDataset(
        DataFiles("KMNIST", "KMNIST/raw", FILE_NAMES),
        ("お", "き", "す", "つ", "な", "は", "ま", "や", "れ", "を"),
    ),
}


def load_mnist(config: MnistConfig) -> Dataset:
    """Load a member of IDX_DATASETS from the first directory that has it, or download it. Raises DataError."""
    return load_idx_dataset(config, IDX_DATASETS[config.name])


def load_idx_dataset(config: TorchvisionConfig, idx_dataset: IdxDataset) -> Dataset:
    """Load the data set from the first directory that has it, or download it. Raises DataError."""
    folder = find_or_download(config, idx_dataset.files)
    names = idx_dataset.files.names
    train, test = (_read_split(folder, part, idx_dataset) for part in (names[:2], names[2:]))
    return Dataset(config.name, train, test, idx_dataset.class_names)


def _read_split(folder: Path, names: tuple[str, ...], idx_dataset: IdxDataset) -> Split:
    image_path, label_path = (find_file(folder, name) for name in names)
    assert image_path is not None
    assert label_path is not None
    images = read_idx(image_path, 3)[:, None]
    labels = read_idx(label_path, 2)[:, 0] if "idx2" in label_path.name else read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{image_path}: {len(images)} images, but {label_path} has {len(labels)} labels. {REMEDY}")
    if names == FILE_NAMES[2:]:
        _check_identity(folder, labels, idx_dataset)
    labels = check_labels(labels.long() - idx_dataset.first_label, len(idx_dataset.class_names), label_path)
    return Split(
        {"image": images.transpose(2, 3).contiguous() if idx_dataset.is_transposed else images, "label": labels}
    )


def _check_identity(folder: Path, labels: Tensor, idx_dataset: IdxDataset) -> None:
    """Raise DataError where the test labels are those of another data set, whose files have the same names."""
    checksum = hashlib.md5(labels.numpy().tobytes(), usedforsecurity=False).hexdigest()
    for name, other in IDX_DATASETS.items():
        if other is not idx_dataset and other.test_labels_md5 == checksum:
            raise DataError(f"{folder}: contains {name}, not {idx_dataset.files.torchvision_name}. {REMEDY}")
