"""Keys that image data sets share: size, channels, augmentation, and a held-out part of the training split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.config import FieldError, require, suggest_choice
from genexp.data.dataset import Dataset, Split, Stream
from genexp.data.registry import DatasetConfig
from genexp.data.sampling import take_samples
from genexp.data.sources._array_files import split_indices
from genexp.device import check_memory
from genexp.errors import ConfigError
from genexp.images.transforms import Augmentation, to_gray

BLOCK_IMAGES = 1000  # images converted at a time
CHANNEL_COUNTS = (1, 3)
NO_AUGMENTATION = vars(Augmentation())
MAX_ROTATION = 180.0


def convert_images(images: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return images, uint8 (n, old channels, old height, old width), in another shape: uint8 (n, *new shape).

    Images are resized to cover the new size, with an antialiased bicubic filter, and cropped at the center. Gray
    becomes three equal channels; colors become their luma.
    """
    return torch.cat([_convert_block(block, channels, height, width) for block in images.split(BLOCK_IMAGES)])


def _convert_block(images: Tensor, channels: int, height: int, width: int) -> Tensor:
    old_channels, old_height, old_width = images.shape[1:]
    pixels = images.float()
    if (old_height, old_width) != (height, width):
        scale = max(height / old_height, width / old_width)
        covering = (max(height, round(old_height * scale)), max(width, round(old_width * scale)))
        pixels = F.interpolate(pixels, covering, mode="bicubic", antialias=True)
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        pixels = pixels[:, :, top : top + height, left : left + width]
    if channels == 1 and old_channels == 3:
        pixels = to_gray(pixels)
    return pixels.round().clamp(0, 255).to(torch.uint8).expand(-1, channels, -1, -1).contiguous()


def _convert_stream(stream: Stream, shape: tuple[int, int, int]) -> Tensor:
    assert isinstance(stream, Tensor), "images that are read one by one are resized when they are read"
    return convert_images(stream, *shape)


def _select_rows(split: Split, rows: Tensor) -> Split:
    return replace(split, streams={name: take_samples(stream, rows) for name, stream in split.streams.items()})


@dataclass
class AugmentedConfig(DatasetConfig):
    """Keys of all data sets of images."""

    augment: dict[str, Any]  # some of the fields of Augmentation

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in self.augment.items():
            name = f"augment.{key}"
            if key not in NO_AUGMENTATION:
                raise FieldError(name, value, f"unknown key. {suggest_choice(str(key), NO_AUGMENTATION)}")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if key == "flip":
                require(isinstance(value, bool), name, value, "must be true or false")
            elif key == "crop":
                require(is_number and value >= 0 and value == int(value), name, value, "must be pixels, 0 or more")
            elif key == "rotation":
                rule = f"must be degrees in [0, {MAX_ROTATION:.0f}]"
                require(is_number and 0 <= value <= MAX_ROTATION, name, value, rule)
            else:
                require(is_number and 0 <= value <= 1, name, value, "must be in [0, 1]")

    def convert(self, dataset: Dataset) -> Dataset:
        """Return the data set. Raises ConfigError for a border that is larger than its images."""
        augmentation = self.augmentation
        sides = [min(shape[1:]) for shape in dataset.spec.shapes.values() if len(shape) == 3]
        if augmentation is not None and augmentation.crop >= min(sides):
            raise ConfigError(
                f"dataset.augment.crop={augmentation.crop}: must be below the {min(sides)} pixels of the images."
            )
        return dataset

    @property
    def augmentation(self) -> Augmentation | None:
        """Random changes of the training images, or None if there are none."""
        augmentation = Augmentation(**self.augment)
        return augmentation if augmentation != Augmentation() else None


@dataclass
class ResizableConfig(AugmentedConfig):
    """Keys of data sets whose images can have another size and other channels than their files."""

    size: int | None  # height and width in pixels; None: those of the files
    channels: int | None  # 1 for gray, 3 for color; None: those of the files

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size is None or self.size > 0, "size", self.size, "must be at least 1 pixel, or null")
        is_valid = self.channels in (None, *CHANNEL_COUNTS)
        require(is_valid, "channels", self.channels, "must be 1 (gray), 3 (color), or null")

    def convert(self, dataset: Dataset) -> Dataset:
        """Return the data set with images of `size` and `channels`. Raises ConfigError for too little memory."""
        channels, height, width = dataset.spec.image_shape
        shape = (self.channels or channels, self.size or height, self.size or width)
        if shape == (channels, height, width):
            return super().convert(dataset)
        key = "size" if self.size is not None else "channels"
        count = len(dataset.train) + len(dataset.test)
        check_memory(count * shape[0] * shape[1] * shape[2], f"dataset.{key}={getattr(self, key)}")
        train, test = (
            replace(split, streams={**split.streams, "image": _convert_stream(split.streams["image"], shape)})
            for split in (dataset.train, dataset.test)
        )
        return super().convert(replace(dataset, train=train, test=test))


@dataclass
class HeldOutConfig(ResizableConfig):
    """Keys of data sets with a test split of their own."""

    test_fraction: float | None  # of the training split, which is then the test split; None: that of the files

    def __post_init__(self) -> None:
        super().__post_init__()
        is_valid = self.test_fraction is None or 0 < self.test_fraction < 1
        require(is_valid, "test_fraction", self.test_fraction, "must be between 0 and 1, or null")

    def select_splits(self, dataset: Dataset) -> Dataset:
        """Return the data set. If `test_fraction` is set, a part of the training split is the test split."""
        if self.test_fraction is None:
            return dataset
        labels = dataset.train.streams.get("label")
        rows = split_indices(
            len(dataset.train), self.test_fraction, labels if isinstance(labels, Tensor) else None
        )
        train, test = (_select_rows(dataset.train, indices) for indices in rows)
        return replace(dataset, train=train, test=test)
