"""Pictures as Pillow has them, and as files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_SHORT_SIDE_PIXELS = 256  # pixels; smaller pictures are enlarged for the eye
MAX_LONG_SIDE_PIXELS = 1600


def to_pil_image(pixels: Tensor) -> Image:
    """Return uint8 pixels (channels, height, width) as a gray or an RGB image."""
    from PIL import Image

    array = pixels.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0).copy())


def enlarge_small_image(image: Image) -> Image:
    """Return a small image with each pixel repeated, so that the shorter side has some 256 pixels.

    One with half as many is left as it is: it may be a photograph.
    """
    from PIL.Image import Resampling

    factor = min(-(-MIN_SHORT_SIDE_PIXELS // min(image.size)), MAX_LONG_SIDE_PIXELS // max(image.size))
    if factor <= 1 or min(image.size) >= MIN_SHORT_SIDE_PIXELS // 2:
        return image
    return image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)


def fit_to_size(image: Image, size: tuple[int, int]) -> Image:
    """Return an image in the given size, its pixels repeated where that makes it fit."""
    from PIL.Image import Resampling

    if image.size == size:
        return image
    is_integer_factor = size[0] % image.width == 0 and size[1] % image.height == 0
    return image.resize(size, Resampling.NEAREST if is_integer_factor else Resampling.LANCZOS)


def encode_png(image: Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
