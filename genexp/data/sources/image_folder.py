"""Image directory as a data set. Subdirectories, if any, are the classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genexp.config import require
from genexp.data.dataset import Dataset, LazyStream, Split
from genexp.data.loading import count_split_bytes
from genexp.data.registry import register_dataset
from genexp.data.sampling import subset
from genexp.data.sources._image_files import (
    PIL_MODES,
    ImageFileStream,
    find_image_files,
    format_unreadable_warning,
    partition_readable,
    read_all_images,
)
from genexp.data.sources._images import AugmentedConfig
from genexp.errors import DataError
from genexp.seeding import derive_seed


@register_dataset("image_folder")
@dataclass
class ImageFolderConfig(AugmentedConfig):
    """conf/dataset/image_folder.yaml."""

    is_own_data = True

    root: str | None  # directory of the images; required
    size: int  # height and width, in pixels
    channels: int  # 1 for gray, 3 for color
    test_fraction: float  # in (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.root is not None, "root", "null", "must be a directory of images")
        require(self.size >= 1, "size", self.size, "must be at least 1 pixel")
        require(self.channels in PIL_MODES, "channels", self.channels, "must be 1 (gray) or 3 (color)")
        require(0 < self.test_fraction < 1, "test_fraction", self.test_fraction, "must be between 0 and 1")

    def load(self) -> Dataset:
        """Return uint8 images (n, channels, size, size), in memory if they fit in `resident_gb`, else lazy.

        Unreadable files are skipped with a warning. Raises DataError if fewer than two readable images remain.
        """
        assert self.root is not None
        root = Path(self.root).expanduser()
        files = _find_images(root)
        readable, broken = partition_readable(files)
        if len(readable) < 2:
            raise DataError(
                f"dataset.root={root}: {len(readable)} readable images among {len(files)} files, at least 2 are "
                f"required. Add images, or use another directory."
            )
        names, files_by_class, stray_warnings = _group_by_class(readable, root)
        train, test = _split_classes_by_hash(files_by_class, root, self.test_fraction)
        dataset = Dataset(
            self.name, _build_lazy_split(train, names, self), _build_lazy_split(test, names, self), names
        )
        # Reduced before reading: a small limit must not read the whole directory.
        dataset = subset(dataset, self.limit)
        train_split, test_split = dataset.train, dataset.test
        if count_split_bytes(train_split) + count_split_bytes(test_split) <= self.resident_gb * 1e9:
            train_split, broken_train = _load_split(train_split)
            test_split, broken_test = _load_split(test_split)
            broken += broken_train + broken_test
            if not len(train_split) or not len(test_split):
                raise DataError(
                    f"{format_unreadable_warning(broken, len(files), root)[0]}. Too few remain: add images."
                )
        return Dataset(
            self.name,
            train_split,
            test_split,
            names,
            (*format_unreadable_warning(broken, len(files), root), *stray_warnings),
        )


def _find_images(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"dataset.root={root}: not a directory. Use a directory of images.")
    found = find_image_files(root)
    if not found:
        raise DataError(f"dataset.root={root}: contains no images. Use a directory of images.")
    return found


def _group_by_class(
    paths: Sequence[Path], root: Path
) -> tuple[tuple[str, ...], list[list[Path]], tuple[str, ...]]:
    """Return the class names, the files of each class, and a warning about files outside any class.

    Without subdirectories there are no class names, and all files are one group.
    """
    files_by_class: dict[str, list[Path]] = {}
    for path in paths:
        if path.parent != root:
            files_by_class.setdefault(path.relative_to(root).parts[0], []).append(path)
    if not files_by_class:
        return (), [list(paths)], ()
    num_outside = sum(path.parent == root for path in paths)
    warning = (
        f"{num_outside} images in {root} are skipped, because they are outside of the directories of the classes"
    )
    folders = sorted(files_by_class)
    names = tuple(os.fsencode(folder).decode(errors="backslashreplace") for folder in folders)
    return names, [files_by_class[name] for name in folders], (warning,) if num_outside else ()


LabeledPaths = list[tuple[Path, int]]  # file, class index


def _split_classes_by_hash(
    files_by_class: list[list[Path]], root: Path, test_fraction: float
) -> tuple[LabeledPaths, LabeledPaths]:
    """Return the files of the train and test split, each with a share of every class.

    Within each class the files are ranked by a hash of their path below `root`, and the first ones go to test.
    Adding files therefore moves few others between the splits.
    """
    train: LabeledPaths = []
    test: LabeledPaths = []
    for label, paths in enumerate(files_by_class):
        ranked = sorted(paths, key=lambda path: derive_seed("split", path.relative_to(root).as_posix()))
        count = round(len(paths) * test_fraction)
        test += [(path, label) for path in sorted(ranked[:count])]
        train += [(path, label) for path in sorted(ranked[count:])]
    # An empty split gets one file of the other split.
    if not test:
        test.append(train.pop())
    if not train:
        train.append(test.pop())
    return train, test


def _build_lazy_split(files: LabeledPaths, names: tuple[str, ...], config: ImageFolderConfig) -> Split:
    images = ImageFileStream([path for path, _ in files], config.size, config.channels)
    labels = {"label": torch.tensor([label for _, label in files])} if names else {}
    return Split({"image": images, **labels})


def _load_split(split: Split) -> tuple[Split, list[Path]]:
    """Return the split with its images as a tensor, and the files that could not be decoded."""
    stream = split.streams["image"]
    assert isinstance(stream, LazyStream)
    images, kept, broken = read_all_images(stream)
    labels = split.streams.get("label")
    extra = {"label": labels[kept]} if isinstance(labels, torch.Tensor) else {}
    return Split({"image": images, **extra}), broken
