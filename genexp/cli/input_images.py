"""A user's own images, read as a technique wants them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from genexp.data.loading import convert_dtype
from genexp.data.sources._image_files import UnreadableImageError, find_image_files, read_image
from genexp.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def find_input_images(path: Path) -> dict[Path, str]:
    """Return the picture files that `path`, a file or a folder, stands for, each with a name of its own.

    A name is the file's path below the folder, less its extension where that leaves it unique. Raises DataError.
    """
    if path.is_file():
        return {path: path.stem}
    if not path.is_dir():
        raise DataError(f"--input {path} is no file and no folder; give a picture, or a folder of pictures")
    files = find_image_files(path)
    if not files:
        raise DataError(f"--input {path} holds no pictures; give a folder that does")
    stems = [file.relative_to(path).with_suffix("").as_posix() for file in files]
    counts = Counter(stems)
    return {
        file: name if counts[name] == 1 else file.relative_to(path).as_posix()
        for file, name in zip(files, stems, strict=True)
    }


def read_input_images(
    files: Sequence[Path], shape: tuple[int, ...], batch_size: int
) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield files and their images (at most `at_once`, *shape), float in [0, 1].

    Pictures are cut to their center square where they are not square. One that cannot be read is left out with a
    warning. Raises DataError where none can be read, and ConfigError for a `shape` that is not square.
    """
    channels, height, width = shape
    if height != width:
        raise ConfigError(f"--input gives square images, and this run's are {width}×{height}; leave it out")
    broken: list[UnreadableImageError] = []
    readable = _read_valid_images(files, height, channels, broken)
    count = 0
    while batch := list(islice(readable, batch_size)):
        count += len(batch)
        yield [file for file, _ in batch], convert_dtype(torch.stack([image for _, image in batch]))
    if not count:
        others = f", nor can the {len(broken) - 1} others" if len(broken) > 1 else ""
        raise DataError(f"--input: {broken[0]}{others}")
    for error in broken:
        log.warning("left out: %s", error)


def _read_valid_images(
    files: Sequence[Path], size: int, channels: int, broken: list[UnreadableImageError]
) -> Iterator[tuple[Path, Tensor]]:
    for file in files:
        try:
            yield file, read_image(file, size, channels)
        except UnreadableImageError as error:
            broken.append(error)
