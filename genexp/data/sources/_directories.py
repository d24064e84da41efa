"""Image directories as streams: file search, train/test split and loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from genexp.config import require
from genexp.data.dataset import Dataset, LazyStream, Split
from genexp.data.loading import count_split_bytes
from genexp.data.sampling import subset
from genexp.data.sources._image_files import (
    PIL_MODES,
    find_image_files,
    format_unreadable_warning,
    partition_readable,
    read_all_images,
)
from genexp.data.sources._images import AugmentedConfig
from genexp.errors import DataError
from genexp.seeding import derive_seed

Item = TypeVar("Item")


@dataclass
class ImageDirectoriesConfig(AugmentedConfig):
    """Keys of all data sets that are read from image directories."""

    is_own_data = True

    size: int  # height and width, in pixels
    channels: int  # 1 for gray, 3 for color
    test_fraction: float  # in (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 1, "size", self.size, "must be at least 1 pixel")
        require(self.channels in PIL_MODES, "channels", self.channels, "must be 1 (gray) or 3 (color)")
        require(0 < self.test_fraction < 1, "test_fraction", self.test_fraction, "must be between 0 and 1")


@dataclass(frozen=True)
class ImageDirectory:
    """Image files of one directory with valid headers, and warnings about the other files."""

    root: Path
    paths: list[Path]
    warnings: tuple[str, ...]

    def get_relative_stem(self, path: Path) -> str:
        """Return the path of an image relative to `root`, without its extension."""
        return path.relative_to(self.root).with_suffix("").as_posix()


def scan_directory(directory: str, key: str) -> ImageDirectory:
    """Return the images in `directory`, the value of dataset.`key`. Raises DataError if there are none."""
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise DataError(f"dataset.{key}={directory}: not a directory. Use a directory of images.")
    files = find_image_files(root)
    readable, broken = partition_readable(files)
    if not readable:
        raise DataError(f"dataset.{key}={directory}: contains no readable images. Use a directory of images.")
    return ImageDirectory(root, readable, format_unreadable_warning(broken, len(files), root))


def split_by_hash(
    items: Sequence[Item], get_name: Callable[[Item], str], test_fraction: float
) -> tuple[list[Item], list[Item]]:
    """Return (train, test), each sorted by name, with about `test_fraction` of the items in test.

    Items are ranked by a hash of their name, and the first ones go to test. Adding items therefore moves few
    others between the splits. Both splits have items if there are at least two.
    """
    ranked = sorted(items, key=lambda item: derive_seed("split", get_name(item)))
    count = min(max(1, round(len(items) * test_fraction)), len(items) - 1)
    return sorted(ranked[count:], key=get_name), sorted(ranked[:count], key=get_name)


def subset_and_load(dataset: Dataset, config: ImageDirectoriesConfig) -> Dataset:
    """Return `dataset` with at most `limit` training samples, read into memory if it fits in `resident_gb`.

    Images that cannot be decoded are skipped with a warning, and in aligned splits their partners too. Raises
    DataError if no images remain.
    """
    # Reduced before reading: a small limit must not read the whole directory.
    dataset = subset(dataset, config.limit)
    if count_split_bytes(dataset.train) + count_split_bytes(dataset.test) > config.resident_gb * 1e9:
        return dataset
    train, broken_train = _load_split(dataset.train)
    test, broken_test = _load_split(dataset.test)
    broken = [path.name for path in sorted({*broken_train, *broken_test})]
    warning = f"{len(broken)} damaged images are skipped: {', '.join(broken[:5])}"
    if not len(train) or not len(test):
        raise DataError(f"{warning}. Too few remain: add images.")
    return replace(dataset, train=train, test=test, warnings=(*dataset.warnings, *([warning] if broken else [])))


def _load_split(split: Split) -> tuple[Split, list[Path]]:
    """Return the split with its images as tensors, and the files that could not be decoded."""
    streams: dict[str, Tensor] = {}
    sample_indices: dict[str, Tensor] = {}
    broken: list[Path] = []
    for name, stream in split.streams.items():
        assert isinstance(stream, LazyStream)
        streams[name], sample_indices[name], broken_files = read_all_images(stream)
        broken += broken_files
    if split.is_aligned and broken:
        kept = [set(indices.tolist()) for indices in sample_indices.values()]
        common = torch.tensor(sorted(set.intersection(*kept)), dtype=torch.int64)
        streams = {name: images[torch.isin(sample_indices[name], common)] for name, images in streams.items()}
    return replace(split, streams=streams), broken
