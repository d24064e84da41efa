"""Image files that `genexp-sample` reads, in the shape that a technique expects, and those that it writes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from genexp.data.loading import convert_and_scale
from genexp.data.sources._image_files import UnreadableImageError, find_image_files, read_image
from genexp.errors import ConfigError, DataError
from genexp.images.grid import PADDING_VALUE, make_grid
from genexp.images.latent_walks import make_animation, make_filmstrip
from genexp.recorders.pil_images import encode_png, enlarge_small_image, to_pil_image, write_animation
from genexp.run_dir.files import create_dir, write_file
from genexp.training.trainer import to_uint8

log = logging.getLogger(__name__)
MAX_COMPARED_IMAGES, GRID_COLUMNS = 50, 10  # images of each batch in a comparison grid, and in each of its rows
FRAME_MILLISECONDS = 80  # display time of one GIF frame


def find_input_images(path: Path) -> dict[Path, str]:
    """Return image file → unique name. `path` is one file, or a directory that is searched recursively.

    A name is the path below the directory. The extension is removed unless two names would then be equal.
    Raises DataError if `path` does not exist or contains no images.
    """
    if path.is_file():
        return {path: path.stem}
    if not path.is_dir():
        raise DataError(f"--input {path}: not found. Use an image file, or a directory of images.")
    files = find_image_files(path)
    if not files:
        raise DataError(f"--input {path}: contains no images. Use a directory of images.")
    stems = [file.relative_to(path).with_suffix("").as_posix() for file in files]
    counts = Counter(stems)
    return {
        file: name if counts[name] == 1 else file.relative_to(path).as_posix()
        for file, name in zip(files, stems, strict=True)
    }


def read_input_images(
    files: Sequence[Path], shape: tuple[int, ...], batch_size: int
) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield files and their images: `(batch, channels, height, width)`, float in [0, 1].

    A batch has at most `batch_size` images. Images are cropped to their center square and resized. A file that
    cannot be read is skipped with a warning. `shape` is (channels, height, width).

    Raises DataError if no file can be read, and ConfigError if `shape` is not square.
    """
    channels, height, width = shape
    if height != width:
        raise ConfigError(f"--input: requires a run with square images (they are {width}×{height}). Remove it.")
    errors: list[UnreadableImageError] = []
    readable_images = _read_valid_images(files, height, channels, errors)
    count = 0
    while batch := list(islice(readable_images, batch_size)):
        count += len(batch)
        yield [file for file, _ in batch], convert_and_scale(torch.stack([image for _, image in batch]))
    if not count:
        others = f" The other {len(errors) - 1} files are unreadable too." if len(errors) > 1 else ""
        raise DataError(f"--input: {errors[0]}{others}")
    for error in errors:
        log.warning("skipped: %s", error)


def _read_valid_images(
    files: Sequence[Path], size: int, channels: int, errors: list[UnreadableImageError]
) -> Iterator[tuple[Path, Tensor]]:
    """Yield (file, uint8 image `(channels, size, size)`), and append the errors of other files to `errors`."""
    for file in files:
        try:
            yield file, read_image(file, size, channels)
        except UnreadableImageError as error:
            errors.append(error)


def make_comparison_grid(*batches: Tensor) -> Tensor:
    """Return a grid `(channels, height, width)` of batches `(count, channels, height, width)`.

    Corresponding images of the batches are below each other, in the order of the batches. Grayscale images are
    expanded to RGB beside RGB images. At most `MAX_COMPARED_IMAGES` of each batch are shown.
    """
    channels = max(batch.shape[1] for batch in batches)
    blocks = []
    for parts in zip(*(batch[:MAX_COMPARED_IMAGES].float().split(GRID_COLUMNS) for batch in batches), strict=True):
        columns = min(GRID_COLUMNS, len(batches[0]))
        blocks += [_pad_with_blank_images(part.expand(-1, channels, -1, -1), columns) for part in parts]
    return make_grid(torch.cat(blocks), len(blocks[0]))


def _pad_with_blank_images(images: Tensor, count: int) -> Tensor:
    """Return `images` (batch, c, h, w), padded at the end with blank images to `count` images."""
    blank = images.new_full((count - len(images), *images.shape[1:]), PADDING_VALUE)
    return torch.cat([images, blank])


def write_latent_walk(output_dir: Path, name: str, images: Tensor, formats: Sequence[str]) -> list[Path]:
    """Write images `(frames, paths, c, h, w)` as a PNG with one row per path, and as animations.

    `formats` are some of VIDEO_FORMATS. Return the paths.
    """
    grid_path = write_enlarged_image(output_dir / f"{name}.png", make_filmstrip(images))
    frames = [enlarge_small_image(to_pil_image(frame)) for frame in to_uint8(make_animation(images))]
    paths = [output_dir / f"{name}.{video_format}" for video_format in formats]
    for path in paths:
        write_animation(path, frames, FRAME_MILLISECONDS)
    return [grid_path, *paths]


def write_enlarged_image(path: Path, image: Tensor) -> Path:
    """Write an image `(c, h, w)` in [0, 1] as PNG for viewing: a small image is enlarged. Return `path`."""
    create_dir(path.parent)
    write_file(path, encode_png(enlarge_small_image(to_pil_image(to_uint8(image)))))
    return path


def write_image(path: Path, image: Tensor) -> Path:
    """Write an image `(c, h, w)` in [0, 1] as PNG at its own size. Return `path`."""
    create_dir(path.parent)
    write_file(path, encode_png(to_pil_image(to_uint8(image))))
    return path
