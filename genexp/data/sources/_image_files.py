"""Image files in any format that Pillow reads, resized and cropped to one square size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genexp.data.dataset import LazyStream
from genexp.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

PIL_MODES = {1: "L", 3: "RGB"}
MAX_LISTED_FILES = 5  # unreadable files named in a warning; the others are counted
CropRange = tuple[float, float]  # left and right edge of a crop, as fractions of the image width
FULL_WIDTH: CropRange = (0.0, 1.0)


class UnreadableImageError(DataError):
    """Error of an image file that cannot be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: not readable as an image ({reason}). Replace or remove it.")
        self.path = path


class ImageFileStream(LazyStream):
    """Lazy stream of image files, optionally cropped: uint8 (channels, size, size)."""

    dtype = torch.uint8

    def __init__(self, paths: Sequence[Path], size: int, channels: int, crop: CropRange = FULL_WIDTH) -> None:
        self.paths, self.crop = list(paths), crop
        self.sample_shape = (channels, size, size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return one image. Raises UnreadableImageError, for example if the file was removed after the search."""
        channels, size, _ = self.sample_shape
        return read_image(self.paths[index], size, channels, self.crop)


def find_image_files(root: Path) -> list[Path]:
    """Return the sorted files under `root` with an extension that Pillow reads, without hidden files."""
    from PIL import Image

    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    visited = {root.resolve()}  # symbolic links are followed, but not in cycles
    for folder, folders, files in os.walk(root, followlinks=True):
        subdirs = {name: (Path(folder) / name).resolve() for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, target in subdirs.items() if target not in visited]
        visited.update(subdirs.values())
        found += [Path(folder) / name for name in files if not name.startswith(".")]
    candidates = (path for path in found if path.suffix.lower() in extensions)
    return sorted(path for path in candidates if path.is_file())  # reading a named pipe would not end


def read_image(path: Path, size: int, channels: int, crop: CropRange = FULL_WIDTH) -> Tensor:
    """Return the center square of an image, resized to `size`: uint8 (channels, size, size).

    With `crop`, the square is taken from that part of the image. Of an animation the first frame is read. Raises
    UnreadableImageError.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if crop == FULL_WIDTH:
                image.draft(PIL_MODES[channels], (size, size))  # JPEG is then decoded at a reduced resolution
            upright = convert_to_8bit(ImageOps.exif_transpose(image), PIL_MODES[channels])
            if crop != FULL_WIDTH:
                left, right = (round(edge * upright.width) for edge in crop)
                upright = upright.crop((left, 0, right, upright.height))
            fitted = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's plugins raise any exception on damaged files
        raise UnreadableImageError(path, _get_first_line(error)) from None
    pixels = torch.from_numpy(np.array(fitted))  # (size, size) or (size, size, 3)
    return pixels.reshape(size, size, channels).permute(2, 0, 1).contiguous()


def is_readable(path: Path) -> bool:
    """Return whether a file passes Pillow's checks of its header and structure, without decoding it."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()
    except Exception:  # as above
        return False
    return True


def partition_readable(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return (readable, broken) files, checked without decoding them."""
    with ThreadPoolExecutor() as pool:
        flags = list(pool.map(is_readable, paths))
    readable_paths = [path for path, is_readable in zip(paths, flags, strict=True) if is_readable]
    return readable_paths, [path for path, is_good in zip(paths, flags, strict=True) if not is_good]


def read_all_images(images: LazyStream) -> tuple[Tensor, Tensor, list[Path]]:
    """Decode all images. Return the pixels, the indices of the decoded images, and the broken files.

    Pixels are uint8 (decoded, channels, size, size), and indices int64 (decoded,).
    """
    pixels = torch.empty(len(images), *images.sample_shape, dtype=torch.uint8)

    def read(index: int) -> Path | None:
        try:
            pixels[index] = images[index]
        except UnreadableImageError as error:
            return error.path
        return None

    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes
        broken = list(pool.map(read, range(len(images))))
    kept = torch.tensor([index for index, path in enumerate(broken) if path is None], dtype=torch.int64)
    readable_pixels = pixels if len(kept) == len(pixels) else pixels[kept]
    return readable_pixels, kept, [path for path in broken if path is not None]


def format_unreadable_warning(broken: Iterable[Path], total: int, root: Path) -> tuple[str, ...]:
    """Return a warning with the number and names of the broken files, or no warning if there are none."""
    names = sorted(str(path.relative_to(root)) for path in broken)
    if not names:
        return ()
    more = f" and {len(names) - MAX_LISTED_FILES} more" if len(names) > MAX_LISTED_FILES else ""
    listed = ", ".join(names[:MAX_LISTED_FILES])
    return (f"{len(names)} of {total} images in {root} are not readable and are skipped: {listed}{more}",)


def convert_to_8bit(image: Image, mode: str) -> Image:
    """Return an image in `mode`, "L" or "RGB", without transparency."""
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to white instead of scaling them
        image = image.convert("I").point(lambda value: value / 256)
    return image.convert(mode)


def _get_first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
