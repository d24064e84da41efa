"""Conversion of uint8 tensors to Pillow images, PNG files and animations."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from genexp.images.animation import Frame, encode_animation
from genexp.run_dir.files import write_file

if TYPE_CHECKING:
    from PIL.Image import Image

TARGET_SHORT_SIDE_PIXELS = 256  # images with a short side below half of it are enlarged to about this
MAX_LONG_SIDE_PIXELS = 1600  # limit of the enlargement


def to_pil_image(pixels: Tensor) -> Image:
    """Return `pixels`, uint8 (channels, height, width) with 1 or 3 channels, as a gray or RGB image."""
    from PIL import Image

    array = pixels.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0).copy())


def enlarge_small_image(image: Image) -> Image:
    """Return a small image enlarged by an integer factor, to a shorter side of about 256 pixels.

    An image with a shorter side of 128 pixels or more is returned unchanged, because it may be a photograph.
    """
    from PIL.Image import Resampling

    factor = min(-(-TARGET_SHORT_SIDE_PIXELS // min(image.size)), MAX_LONG_SIDE_PIXELS // max(image.size))
    if factor <= 1 or min(image.size) >= TARGET_SHORT_SIDE_PIXELS // 2:
        return image
    return image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)


def fit_to_size(image: Image, size: tuple[int, int]) -> Image:
    """Return an image resized to `size` = (width, height).

    Pixels are repeated if both factors are integers, otherwise the image is resampled by Lanczos.
    """
    from PIL.Image import Resampling

    if image.size == size:
        return image
    is_integer_factor = size[0] % image.width == 0 and size[1] % image.height == 0
    return image.resize(size, Resampling.NEAREST if is_integer_factor else Resampling.LANCZOS)


def encode_png(image: Image) -> bytes:
    """Return the content of a PNG file of `image`."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def read_image(path: Path) -> Image:
    """Return the image in a file. Raises OSError."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
    return image


def write_animation(path: Path, images: Iterable[Image], frame_duration_ms: int) -> None:
    """Write at least one gray or RGB image as a GIF or MP4 file, by the suffix of `path`, atomically.

    Small images are enlarged. The first image determines the size of the animation.
    """
    write_file(path, encode_animation(_iter_frames(images), path.suffix[1:], frame_duration_ms))


def _iter_frames(images: Iterable[Image]) -> Iterator[Frame]:
    size = None
    for image in images:
        frame = enlarge_small_image(image) if size is None else fit_to_size(image, size)
        size = frame.size
        yield np.asarray(frame)
