"""Image files, random images and the frames of GIFs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from genexp.data.dataset import Dataset, Split

IMAGE_SHAPE = (1, 28, 28)


def write_image(path: Path, gray_level: int = 0, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
    """Write an image of one gray level and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, gray_level if mode == "L" else (gray_level,) * len(mode)).save(path)
    return path


def write_images(
    root: Path, count: int = 8, first_number: int = 0, suffix: str = ".png", gray_step: int = 10
) -> Path:
    """Write `count` images named by their number n, with gray level `gray_step` · n. Return `root`."""
    for number in range(first_number, first_number + count):
        write_image(root / f"{number:02}{suffix}", gray_step * number)
    return root


def read_frames(path: Path, mode: str = "RGB") -> list[np.ndarray]:
    """Return the pixels of each frame of a GIF, in a mode of PIL."""
    with Image.open(path) as gif:
        return [np.array(frame.convert(mode)) for frame in ImageSequence.Iterator(gif)]


def make_image_batch(count: int = 8, shape: tuple[int, int, int] = IMAGE_SHAPE) -> dict[str, Tensor]:
    """Return random images with labels from 0 to 9, the same at each call."""
    torch.manual_seed(1)
    return {"image": torch.rand(count, *shape), "label": torch.arange(count) % 10}


def make_image_dataset(count: int = 30, *, is_labeled: bool = True, name: str = "mnist_5k") -> Dataset:
    """Return a data set of `count` random images, the same for training and test."""
    torch.manual_seed(2)
    streams: dict[str, Any] = {"image": torch.randint(0, 256, (count, *IMAGE_SHAPE), dtype=torch.uint8)}
    if is_labeled:
        streams["label"] = torch.arange(count) % 10
    return Dataset(name, Split(streams), Split(streams), ("zero", "one") if is_labeled else ())


def write_noise_image(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write an image of noise, which compresses badly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(path)
