"""Files of torchvision's data sets: found on this machine, or downloaded."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from genexp.data.sources._images import HeldOutConfig
from genexp.errors import DataError

REMEDY = "Replace the file by a complete copy, or use another dataset.root."
DOWNLOAD_TIMEOUT_SECONDS = 30  # longest wait for data from the network


@dataclass
class TorchvisionConfig(HeldOutConfig):
    """Keys of the data sets of torchvision."""

    root: str | None  # directory of the files; None searches the usual directories, then downloads


@dataclass(frozen=True)
class DataFiles:
    """Files of a data set, and the class of torchvision that downloads them."""

    torchvision_name: str  # class in torchvision.datasets
    directory: str  # below a directory that is searched. Its last parts alone are searched too.
    names: tuple[str, ...]
    downloads: tuple[Mapping[str, Any], ...] = ({},)  # keyword arguments of the class, for each download
    system_dirs: tuple[Path, ...] = ()  # of packages of the operating system

    @property
    def description(self) -> str:
        """Name and first file, for error messages."""
        number = {1: "one", 2: "two", 4: "four"}.get(len(self.names), str(len(self.names)))
        return f"the {number} {self.torchvision_name} files {self.names[0]} …"

    def find_in(self, search_dir: Path) -> Path | None:
        """Return the directory with all files that is `search_dir` or a known one below it, or None."""
        parts = PurePosixPath(self.directory).parts
        candidates = (search_dir.joinpath(*parts[start:]) for start in range(len(parts) + 1))
        return next((folder for folder in candidates if all(find_file(folder, n) for n in self.names)), None)


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file `name` in `folder`, plain or gzipped, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def find_or_download(config: TorchvisionConfig, files: DataFiles) -> Path:
    """Return the first directory with all files. If there is none, download them. Raises DataError."""
    for search_dir in _list_search_dirs(config, files):
        folder = files.find_in(search_dir)
        if folder is not None:
            return folder
    if config.root is not None:
        # An explicit directory must not be replaced silently by another.
        raise DataError(
            f"dataset.root={config.root}: no {files.description} (also .gz) there or in "
            f"{files.directory}. Use another directory, or dataset.root=null to search elsewhere."
        )
    return download(config.name, files)


def download(name: str, files: DataFiles) -> Path:
    """Download the data set into the user's cache with torchvision. Return its directory. Raises DataError.

    The files are downloaded to a temporary directory and then moved. An interrupted download therefore leaves no
    incomplete files in the cache.
    """
    from genexp.images.vision import torchvision

    cache = get_cache_dir()
    target = cache / files.directory
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
            for options in files.downloads:
                getattr(torchvision.datasets, files.torchvision_name)(scratch, download=True, **options)
            folder = files.find_in(Path(scratch))
            if folder is None:
                raise OSError(f"torchvision wrote no {files.names[0]}")
            move_into_place(folder, target)
    except (OSError, HTTPException, RuntimeError) as error:  # a wrong checksum is a RuntimeError
        reason = " ".join(str(error).split())
        raise DataError(
            f"dataset={name}: not found in {_format_search_dirs(files)}, "
            f"and its download failed ({reason}). Set dataset.root or $GENEXP_DATA to a directory "
            f"with {files.description}, or use dataset=mnist_5k."
        ) from None
    finally:
        socket.setdefaulttimeout(previous_timeout)
    return target


def get_cache_dir() -> Path:
    """Return the directory of downloaded data sets."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("genexp"))


def move_into_place(source: Path, target: Path) -> None:
    """Move the files in `source` to `target`. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():  # another process was faster, or an incomplete directory exists
        for file in source.iterdir():
            file.replace(target / file.name)
    else:
        source.replace(target)


def check_labels(labels: Tensor, num_classes: int, path: Path) -> Tensor:
    """Return labels (n,) as int64. Raises DataError where one is not in [0, `num_classes`)."""
    labels = labels.long()
    for label in labels.aminmax() if len(labels) else ():
        if not 0 <= label < num_classes:
            raise DataError(
                f"{path}: contains the label {int(label)}, but there are {num_classes} classes. {REMEDY}"
            )
    return labels


def _list_search_dirs(config: TorchvisionConfig, files: DataFiles) -> list[Path]:
    if config.root is not None:
        return [Path(config.root).expanduser()]
    data_dir = os.environ.get("GENEXP_DATA")
    return [*([Path(data_dir).expanduser()] if data_dir else []), get_cache_dir(), *files.system_dirs]


def _format_search_dirs(files: DataFiles) -> str:
    search_dirs = [get_cache_dir(), *files.system_dirs]
    data_dir = os.environ.get("GENEXP_DATA")
    return ", ".join([f"$GENEXP_DATA ({data_dir or 'not set'})", *map(str, search_dirs)])
