"""Picture files of any kind, brought to one square size."""

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

MODES = {1: "L", 3: "RGB"}
NAMED = 5  # broken files that a message names; it counts the others
Part = tuple[float, float]  # from where to where across a picture, as parts of its width
WHOLE: Part = (0.0, 1.0)


class BrokenPicture(DataError):
    """A picture cannot be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be read ({reason}); replace or remove it")
        self.path = path


class PictureFiles(LazyStream):
    """Pictures, or a part of each, read on demand: uint8 (channels, size, size)."""

    dtype = torch.uint8

    def __init__(self, paths: Sequence[Path], size: int, channels: int, part: Part = WHOLE) -> None:
        self.paths, self.part = list(paths), part
        self.shape = (channels, size, size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return one picture. Raises BrokenPicture where the file broke, or vanished, after its check."""
        channels, size, _ = self.shape
        return read_picture(self.paths[index], size, channels, self.part)


def find_pictures(root: Path) -> list[Path]:
    """Return the files under `root` with an extension that Pillow reads, sorted, hidden ones left out."""
    from PIL import Image

    known = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    seen = {root.resolve()}  # links are followed, but not in circles
    for folder, folders, files in os.walk(root, followlinks=True):
        inner = {name: (Path(folder) / name).resolve() for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, target in inner.items() if target not in seen]
        seen.update(inner.values())
        found += [Path(folder) / name for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in known)


def read_picture(path: Path, size: int, channels: int, part: Part = WHOLE) -> Tensor:
    """Return the centre square of a picture, its shorter side resized to `size`: uint8 (channels, size, size).

    Where a `part` is given, that is the picture. Of an animation this is the first frame. Raises BrokenPicture.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if part == WHOLE:
                image.draft(MODES[channels], (size, size))  # lets JPEG decode at a fraction of its resolution
            upright = eight_bit(ImageOps.exif_transpose(image), MODES[channels])
            if part != WHOLE:
                left, right = (round(edge * upright.width) for edge in part)
                upright = upright.crop((left, 0, right, upright.height))
            fitted = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        raise BrokenPicture(path, _line(error)) from None
    pixels = torch.from_numpy(np.array(fitted))  # (size, size) or (size, size, 3)
    return pixels.reshape(size, size, channels).permute(2, 0, 1).contiguous()


def readable(path: Path) -> bool:
    """Return whether a file's header, and what else can be checked without decoding, is sound."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()
    except Exception:  # as above
        return False
    return True


def split_readable(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return (sound, broken) files, checked without decoding them."""
    with ThreadPoolExecutor() as pool:
        verdicts = list(pool.map(readable, paths))
    sound = [path for path, good in zip(paths, verdicts, strict=True) if good]
    return sound, [path for path, good in zip(paths, verdicts, strict=True) if not good]


def read_all(pictures: LazyStream) -> tuple[Tensor, Tensor, list[Path]]:
    """Return the pictures that decode (n, channels, size, size), their indices (n,), and the broken files."""
    pixels = torch.empty(len(pictures), *pictures.shape, dtype=torch.uint8)

    def read(index: int) -> Path | None:
        try:
            pixels[index] = pictures[index]
        except BrokenPicture as error:
            return error.path
        return None

    with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter while it decodes
        broken = list(pool.map(read, range(len(pictures))))
    kept = torch.tensor([index for index, path in enumerate(broken) if path is None], dtype=torch.int64)
    sound = pixels if len(kept) == len(pixels) else pixels[kept]
    return sound, kept, [path for path in broken if path is not None]


def complaint(broken: Iterable[Path], total: int, root: Path) -> tuple[str, ...]:
    """Return the warning that names and counts the broken files, if there are any."""
    names = sorted(str(path.relative_to(root)) for path in broken)
    if not names:
        return ()
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    listed = ", ".join(names[:NAMED])
    return (f"{len(names)} of {total} pictures in {root} cannot be read and are left out: {listed}{more}",)


def eight_bit(image: Image, mode: str) -> Image:
    """Return an image in `mode`, "L" or "RGB", without transparency."""
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to white instead of scaling them
        image = image.convert("I").point(lambda value: value / 256)
    return image.convert(mode)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
