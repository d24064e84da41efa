"""Conversion of uint8 tensors to Pillow images and PNG files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from torch import Tensor

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
