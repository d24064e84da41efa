"""Image files given by `--input`, read in the shape that a technique expects."""

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

log = logging.getLogger(__name__)


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
