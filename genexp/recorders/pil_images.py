"""Pillow images of uint8 tensors, with captions, as PNG files and animations."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor

from genexp.errors import DataError
from genexp.images.animation import Frame, encode_animation
from genexp.images.fonts import find_cjk_font_path, needs_cjk_font
from genexp.images.grid import PADDING_PIXELS
from genexp.run_dir.files import open_regular_file, write_file
from genexp.run_dir.paths import format_path
from genexp.snapshot import RunInfo
from genexp.technique import PictureLabels

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font: TypeAlias = FreeTypeFont | ImageFont

MIN_GRID_WIDTH = 640  # grids are enlarged by the smallest whole number that gives this width
MIN_IMAGE_SIDE = 128  # a smaller image is enlarged like a grid; a larger one may be a photograph
MAX_LONG_SIDE = 2400  # limit of the enlargement
FONT_PIXELS, CAPTION_PIXELS, MARGIN_PIXELS = 13, 24, 8  # size of the text, height of its line, space beside it
TEXT_GRAY, WHITE = 64, 255


def to_pil_image(pixels: Tensor) -> Image:
    """Return `pixels`, uint8 (channels, height, width) with 1 or 3 channels, as a gray or RGB image."""
    from PIL import Image

    array = pixels.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0).copy())


def enlarge_small_image(image: Image) -> Image:
    """Return a grid or a small image enlarged by an integer factor, to a width of at least MIN_GRID_WIDTH.

    Other images, such as photographs, are returned unchanged.
    """
    from PIL.Image import Resampling

    if min(image.size) >= MIN_IMAGE_SIDE and not _has_white_border(image):
        return image
    factor = min(-(-MIN_GRID_WIDTH // image.width), MAX_LONG_SIDE // max(image.size))
    if factor <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)


def _has_white_border(image: Image) -> bool:
    """Return whether the outermost rows and columns are white, as those of a grid are."""
    pixels = np.asarray(image)
    edges = (
        pixels[:PADDING_PIXELS],
        pixels[-PADDING_PIXELS:],
        pixels[:, :PADDING_PIXELS],
        pixels[:, -PADDING_PIXELS:],
    )
    return all(bool((edge == WHITE).all()) for edge in edges)


def format_position(step: int, run: RunInfo) -> str:
    """Return epoch and step of a picture, as its caption states them."""
    return f"epoch {step / run.steps_per_epoch:.4g}, step {step:,}"


def render_picture(image: Image, run: RunInfo, name: str, position: str) -> Image:
    """Return the picture `name` of a run for viewing: enlarged, with its title, `position` and labels.

    A photograph is returned as it is.
    """
    labels = run.picture_labels.get(name, PictureLabels())
    if labels.is_photograph:
        return image
    title = f"{name.replace('_', ' ')}: {run.model_name} on {run.dataset_name}"
    return add_caption(enlarge_small_image(image), title, position, labels)


def add_caption(image: Image, title: str, position: str, labels: PictureLabels) -> Image:
    """Return an image below a line with `title` and `position`, and with the labels of its rows and columns.

    No pixel of `image` is covered.
    """
    from PIL import Image as PilImage
    from PIL import ImageDraw

    font = load_font((title, position, *labels.rows, *labels.columns))
    left = max((math.ceil(font.getlength(label)) + 2 * MARGIN_PIXELS for label in labels.rows), default=0)
    top = CAPTION_PIXELS * (2 if labels.columns else 1)
    captioned = PilImage.new(image.mode, (left + image.width, top + image.height), "white")
    captioned.paste(image, (left, top))
    draw = ImageDraw.Draw(captioned)
    color = TEXT_GRAY if image.mode == "L" else (TEXT_GRAY,) * 3
    middle = CAPTION_PIXELS // 2
    draw.text((captioned.width - MARGIN_PIXELS, middle), position, color, font, anchor="rm")
    free_width = captioned.width - 3 * MARGIN_PIXELS - math.ceil(font.getlength(position))
    draw.text((MARGIN_PIXELS, middle), _shorten(title, font, free_width), color, font, anchor="lm")
    for index, label in enumerate(labels.columns):
        width = image.width / len(labels.columns)
        x = left + round((index + 0.5) * width)
        draw.text((x, top - middle), _shorten(label, font, width), color, font, anchor="mm")
    for index, label in enumerate(labels.rows):
        y = top + round((index + 0.5) * image.height / len(labels.rows))
        draw.text((left - MARGIN_PIXELS, y), label, color, font, anchor="rm")
    return captioned


def _shorten(text: str, font: Font, width: float) -> str:
    """Return `text`, cut at its end where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…" if text else ""


def load_font(texts: Iterable[str]) -> Font:
    """Return Pillow's font, or an installed one with Chinese, Japanese and Korean glyphs if `texts` need it."""
    from PIL import ImageFont

    path = find_cjk_font_path() if any(needs_cjk_font(text) for text in texts) else None
    return ImageFont.load_default(FONT_PIXELS) if path is None else ImageFont.truetype(path, FONT_PIXELS)


def fit_to_size(image: Image, size: tuple[int, int]) -> Image:
    """Return an image resized to `size` = (width, height).

    Pixels are repeated if both factors are integers, otherwise the image is resampled by Lanczos.
    """
    from PIL.Image import Resampling

    if image.size == size:
        return image
    is_integer_factor = size[0] % image.width == 0 and size[1] % image.height == 0
    return image.resize(size, Resampling.NEAREST if is_integer_factor else Resampling.LANCZOS)


def encode_png(image: Image, labels: str | None = None) -> bytes:
    """Return the content of a PNG file of `image`, with `labels` as its text of that name."""
    from PIL.PngImagePlugin import PngInfo

    file, text = io.BytesIO(), PngInfo()
    if labels is not None:
        text.add_text("labels", labels)
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def read_image(path: Path) -> Image:
    """Return the image in a file. Raises DataError if it is damaged."""
    from PIL import Image

    try:
        with open_regular_file(path) as file, Image.open(file) as image:
            image.load()
    except Exception as error:  # Pillow's plugins raise any exception on damaged files
        raise DataError(f"{format_path(path)}: a damaged image ({type(error).__name__}). Delete it.") from None
    return image


def write_animation(path: Path, images: Iterable[Image], frame_duration_ms: int) -> None:
    """Write at least one gray or RGB image as a GIF or MP4 file, by the suffix of `path`, atomically.

    The first image determines the size of the animation.
    """
    write_file(path, encode_animation(_iter_frames(images), path.suffix[1:], frame_duration_ms))


def _iter_frames(images: Iterable[Image]) -> Iterator[Frame]:
    size = None
    for image in images:
        frame = image if size is None else fit_to_size(image, size)
        size = frame.size
        yield np.asarray(frame)
