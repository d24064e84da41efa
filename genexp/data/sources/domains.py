"""Unpaired image-to-image task from any images: domain a and domain b are two transforms of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.config import require
from genexp.data.dataset import Dataset, Split
from genexp.data.registry import register_dataset
from genexp.data.sampling import permutation, take_samples
from genexp.data.sources._derived import DerivedConfig, Transform, transform_stream

DARK_COLOR, LIGHT_COLOR = (24.0, 32.0, 80.0), (255.0, 160.0, 40.0)  # RGB colors that replace black and white


def identity(images: Tensor) -> Tensor:
    """Return the images (batch, channels, height, width) unchanged."""
    return images


def invert(images: Tensor) -> Tensor:
    """Return the negatives of uint8 images (batch, channels, height, width)."""
    return 255 - images


def rotate_180(images: Tensor) -> Tensor:
    """Return the images (n, channels, h, w) rotated by 180 degrees."""
    return images.flip(-1, -2)


def to_grayscale(images: Tensor) -> Tensor:
    """Return images (n, channels, h, w) in gray, with three equal channels (n, 3, h, w)."""
    return images.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def colorize(images: Tensor) -> Tensor:
    """Return images (n, 3, h, w): color images unchanged, gray ones interpolated between two colors."""
    if images.shape[1] == 3:
        return images
    dark, light = (torch.tensor(color).view(3, 1, 1) for color in (DARK_COLOR, LIGHT_COLOR))
    return torch.lerp(dark, light, images / 255).round().to(torch.uint8)


TRANSFORMS: dict[str, tuple[Transform, Transform]] = {  # transforms for domain a and domain b
    "invert": (identity, invert),
    "color": (to_grayscale, colorize),
    "rotate": (identity, rotate_180),
}


@register_dataset("domains")
@dataclass
class DomainsConfig(DerivedConfig):
    """conf/dataset/domains.yaml."""

    change: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.change in TRANSFORMS, "change", self.change, f"must be one of {', '.join(TRANSFORMS)}")

    def load(self) -> Dataset:
        """Return the streams "a" and "b", uint8 (n, channels, h, w). Raises ConfigError and DataError.

        In the training split they are not aligned and have no source image in common. In the test split they are
        aligned, and "a_as_b" and "b_as_a" hold the results of a perfect translation.
        """
        source_dataset = self.load_source(None if self.limit is None else 2 * self.limit)
        to_a, to_b = TRANSFORMS[self.change]
        images = source_dataset.train.streams["image"]
        indices_a, second = permutation(len(images), "domains").tensor_split(2)
        train = Split(
            {
                "a": transform_stream(take_samples(images, indices_a), to_a),
                "b": transform_stream(take_samples(images, second), to_b),
            },
            is_aligned=False,
        )
        test_streams = source_dataset.test.streams
        a, b = transform_stream(test_streams["image"], to_a), transform_stream(test_streams["image"], to_b)
        other_streams = {name: stream for name, stream in test_streams.items() if name != "image"}
        test = Split({"a": a, "b": b, "a_as_b": b, "b_as_a": a, **other_streams})
        return Dataset(self.name, train, test, source_dataset.class_names, source_dataset.warnings)
