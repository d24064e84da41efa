"""MNIST and the sets made in its image: four idx files, found on this machine or downloaded."""

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
from genexp.data.registry import SourceConfig
from genexp.data.sources._idx import REMEDY, read_idx
from genexp.data.sources._labeled_images import DIGIT_NAMES
from genexp.errors import DataError

FILES = tuple(
    f"{split}-{content}-ubyte" for split in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)
PATIENCE = 30  # seconds without a byte from the network


@dataclass
class MnistConfig(SourceConfig):
    """conf/dataset/mnist.yaml and its kin."""

    root: str | None


@dataclass(frozen=True)
class Family:
    """What tells one set of four files from another; the files' names do not."""

    torchvision_name: str  # the class in torchvision.datasets, and its folder
    class_names: tuple[str, ...]
    test_labels_md5: str  # of the labels alone, without the file's header
    system_folders: tuple[Path, ...] = ()


CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FAMILIES = {
    "mnist": Family("MNIST", DIGIT_NAMES, "073c3904dfbd3e141ff8aa01cfde6b15"),
    "fashion_mnist": Family(
        "FashionMNIST",
        CLOTHES,
        "8dea97a4e78c1bd1b5a6e8efbb870b6e",
        (Path("/usr/share/datasets/fashion-mnist"),),  # Debian's package dataset-fashion-mnist
    ),
}


def load_family(config: MnistConfig) -> Dataset:
    """Return the set in the first place that has it, or download it. Raises DataError."""
    family = FAMILIES[config.name]
    folder = find_folder(config, family) or download(config.name, family)
    train, test = _read(folder, "train", family), _read(folder, "t10k", family)
    return Dataset(config.name, train, test, family.class_names)


def find_folder(config: MnistConfig, family: Family) -> Path | None:
    """Return the first folder that holds all four files. Raises DataError where dataset.root has none."""
    for place in _places(config, family):
        layouts = (place / family.torchvision_name / "raw", place / "raw", place)
        for folder in layouts:
            if all(_file(folder, name) for name in FILES):
                return folder
    if config.root is not None:
        # A folder that was asked for by name is not silently replaced by another.
        raise DataError(
            f"dataset.root={config.root} lacks {_wanted(family)}, also .gz, there or in "
            f"{family.torchvision_name}/raw; correct it, or set dataset.root=null to search elsewhere"
        )
    return None


def download(name: str, family: Family) -> Path:
    """Download the set into the user's cache through torchvision, and return its folder. Raises DataError.

    The files arrive in a folder of their own and move into place whole: an interrupted download leaves
    nothing that could be taken for the data.
    """
    from genexp.images.vision import torchvision

    cache = user_cache()
    target = cache / family.torchvision_name
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
            getattr(torchvision.datasets, family.torchvision_name)(scratch, download=True)
            _move(Path(scratch) / family.torchvision_name, target)
    except (OSError, HTTPException, RuntimeError) as error:  # a wrong checksum is a RuntimeError
        reason = " ".join(str(error).split())
        raise DataError(
            f"dataset={name} is in none of {_searched(family)}, and its download failed ({reason}); set "
            f"dataset.root=FOLDER or GENEXP_DATA to a folder with {_wanted(family)}, or use dataset=mnist_5k"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return target / "raw"


def user_cache() -> Path:
    """Return where downloads are kept."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("genexp"))


def _move(source: Path, target: Path) -> None:
    if target.is_dir():  # another process was faster, or an incomplete folder is in the way
        for file in (source / "raw").iterdir():
            (target / "raw").mkdir(exist_ok=True)
            file.replace(target / "raw" / file.name)
    else:
        source.replace(target)


def _places(config: MnistConfig, family: Family) -> list[Path]:
    if config.root is not None:
        return [Path(config.root).expanduser()]
    named = os.environ.get("GENEXP_DATA")
    return [*([Path(named).expanduser()] if named else []), user_cache(), *family.system_folders]


def _searched(family: Family) -> str:
    places = [user_cache(), *family.system_folders]
    named = os.environ.get("GENEXP_DATA")
    return ", ".join([f"$GENEXP_DATA ({named or 'not set'})", *map(str, places)])


def _wanted(family: Family) -> str:
    return f"the four {family.torchvision_name} files {FILES[0]} …"


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read(folder: Path, split: str, family: Family) -> Split:
    image_path, label_path = (_file(folder, name) for name in FILES if name.startswith(split))
    assert image_path is not None
    assert label_path is not None
    images, labels = read_idx(image_path, 3)[:, None], read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{image_path} has {len(images)} images, {label_path} {len(labels)} labels; {REMEDY}")
    for name, other in FAMILIES.items():
        if other is not family and other.test_labels_md5 == _digest(labels):
            raise DataError(f"{folder} holds {name}, not {family.torchvision_name}; {REMEDY}")
    classes = len(family.class_names)
    if len(labels) and int(labels.max()) >= classes:
        raise DataError(f"{label_path} has the label {int(labels.max())} among {classes} classes; {REMEDY}")
    return Split({"image": images, "label": labels.long()})


def _digest(labels: Tensor) -> str:
    return hashlib.md5(labels.numpy().tobytes(), usedforsecurity=False).hexdigest()
