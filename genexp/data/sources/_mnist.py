"""MNIST and data sets in its format: four IDX files, found on this machine or downloaded."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from torch import Tensor

from genexp.data.dataset import Dataset, Split
from genexp.data.registry import DatasetConfig
from genexp.data.sources._idx import REMEDY, read_idx
from genexp.data.sources._labeled_images import DIGIT_NAMES
from genexp.errors import DataError

FILE_NAMES = tuple(
    f"{split}-{content}-ubyte" for split in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)
DOWNLOAD_TIMEOUT_SECONDS = 30  # longest wait for data from the network


@dataclass
class MnistConfig(DatasetConfig):
    """conf/dataset/mnist.yaml and conf/dataset/fashion_mnist.yaml."""

    root: str | None  # directory of the files; None searches the usual directories, then downloads


@dataclass(frozen=True)
class IdxDataset:
    """Properties of one data set of four IDX files. The file names are the same for all of them."""

    torchvision_name: str  # class in torchvision.datasets, and name of its directory
    class_names: tuple[str, ...]
    test_labels_md5: str  # of the test labels, without the file's header
    system_dirs: tuple[Path, ...] = ()  # of packages of the operating system


FASHION_CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
IDX_DATASETS = {
    "mnist": IdxDataset("MNIST", DIGIT_NAMES, "073c3904dfbd3e141ff8aa01cfde6b15"),
    "fashion_mnist": IdxDataset(
        "FashionMNIST",
        FASHION_CLASS_NAMES,
        "8dea97a4e78c1bd1b5a6e8efbb870b6e",
        (Path("/usr/share/datasets/fashion-mnist"),),  # Debian's package dataset-fashion-mnist
    ),
}


def load_idx_dataset(config: MnistConfig) -> Dataset:
    """Load the data set from the first directory that has it, or download it. Raises DataError."""
    idx_dataset = IDX_DATASETS[config.name]
    folder = find_directory(config, idx_dataset) or download(config.name, idx_dataset)
    train, test = _read_split(folder, "train", idx_dataset), _read_split(folder, "t10k", idx_dataset)
    return Dataset(config.name, train, test, idx_dataset.class_names)


def find_directory(config: MnistConfig, idx_dataset: IdxDataset) -> Path | None:
    """Return the first directory with all four files, or None. Raises DataError if dataset.root lacks them."""
    for search_dir in _list_search_dirs(config, idx_dataset):
        candidates = (search_dir / idx_dataset.torchvision_name / "raw", search_dir / "raw", search_dir)
        for folder in candidates:
            if all(_find_file(folder, name) for name in FILE_NAMES):
                return folder
    if config.root is not None:
        # An explicit directory must not be replaced silently by another.
        raise DataError(
            f"dataset.root={config.root}: no {_format_expected_files(idx_dataset)} (also .gz) there or in "
            f"{idx_dataset.torchvision_name}/raw. Use another directory, or dataset.root=null to search elsewhere."
        )
    return None


def download(name: str, idx_dataset: IdxDataset) -> Path:
    """Download the data set into the user's cache with torchvision. Return its directory. Raises DataError.

    The files are downloaded to a temporary directory and then moved. An interrupted download therefore leaves no
    incomplete files in the cache.
    """
    from genexp.images.vision import torchvision

    cache = get_cache_dir()
    target = cache / idx_dataset.torchvision_name
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
            getattr(torchvision.datasets, idx_dataset.torchvision_name)(scratch, download=True)
            _move_into_place(Path(scratch) / idx_dataset.torchvision_name, target)
    except (OSError, HTTPException, RuntimeError) as error:  # a wrong checksum is a RuntimeError
        reason = " ".join(str(error).split())
        raise DataError(
            f"dataset={name}: not found in {_format_search_dirs(idx_dataset)}, "
            f"and its download failed ({reason}). Set dataset.root or $GENEXP_DATA to a directory "
            f"with {_format_expected_files(idx_dataset)}, or use dataset=mnist_5k."
        ) from None
    finally:
        socket.setdefaulttimeout(previous_timeout)
    return target / "raw"


def get_cache_dir() -> Path:
    """Return the directory of downloaded data sets."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("genexp"))


def _move_into_place(source: Path, target: Path) -> None:
    if target.is_dir():  # another process was faster, or an incomplete directory exists
        for file in (source / "raw").iterdir():
            (target / "raw").mkdir(exist_ok=True)
            file.replace(target / "raw" / file.name)
    else:
        source.replace(target)


def _list_search_dirs(config: MnistConfig, idx_dataset: IdxDataset) -> list[Path]:
    if config.root is not None:
        return [Path(config.root).expanduser()]
    data_dir = os.environ.get("GENEXP_DATA")
    return [*([Path(data_dir).expanduser()] if data_dir else []), get_cache_dir(), *idx_dataset.system_dirs]


def _format_search_dirs(idx_dataset: IdxDataset) -> str:
    search_dirs = [get_cache_dir(), *idx_dataset.system_dirs]
    data_dir = os.environ.get("GENEXP_DATA")
    return ", ".join([f"$GENEXP_DATA ({data_dir or 'not set'})", *map(str, search_dirs)])


def _format_expected_files(idx_dataset: IdxDataset) -> str:
    return f"the four {idx_dataset.torchvision_name} files {FILE_NAMES[0]} …"


def _find_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_split(folder: Path, split: str, idx_dataset: IdxDataset) -> Split:
    image_path, label_path = (_find_file(folder, name) for name in FILE_NAMES if name.startswith(split))
    assert image_path is not None
    assert label_path is not None
    images, labels = read_idx(image_path, 3)[:, None], read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{image_path}: {len(images)} images, but {label_path} has {len(labels)} labels. {REMEDY}")
    for name, other in IDX_DATASETS.items():
        if other is not idx_dataset and other.test_labels_md5 == _compute_md5(labels):
            raise DataError(f"{folder}: contains {name}, not {idx_dataset.torchvision_name}. {REMEDY}")
    num_classes = len(idx_dataset.class_names)
    if len(labels) and int(labels.max()) >= num_classes:
        raise DataError(
            f"{label_path}: contains the label {int(labels.max())}, but there are {num_classes} classes. {REMEDY}"
        )
    return Split({"image": images, "label": labels.long()})


def _compute_md5(labels: Tensor) -> str:
    return hashlib.md5(labels.numpy().tobytes(), usedforsecurity=False).hexdigest()
