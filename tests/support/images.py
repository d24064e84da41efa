"""Image files, random images and the frames of GIFs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence


def write_image(path: Path, gray_level: int = 0, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
    """Write an image of one gray level and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, gray_level if mode == "L" else (gray_level,) * len(mode)).save(path)
    return path


def write_images(root: Path, count: int = 8, first_number: int = 0, suffix: str = ".png", level: int = 10) -> Path:
    """Write images named by their number, of the gray level `level` times their number, and return `root`."""
    for number in range(first_number, first_number + count):
        write_image(root / f"{number:02}{suffix}", level * number)
    return root


def read_frames(path: Path, mode: str = "RGB") -> list[np.ndarray]:
    """Return the pixels of each frame of a GIF, in a mode of PIL."""
    with Image.open(path) as gif:
        return [np.array(frame.convert(mode)) for frame in ImageSequence.Iterator(gif)]
