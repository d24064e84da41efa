"""GIFs that grow frame by frame on disk and are whole after each frame."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from genexp.recorders.images import enlarged, fitted, to_image

if TYPE_CHECKING:
    from PIL.Image import Image

_HEADER = 13  # bytes: signature and logical screen descriptor
_FOREVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
_SEPARATOR, _DESCRIPTOR = b"\x2c", 10  # the image descriptor's first byte and length
_HAS_TABLE = 0x80
_TRAILER = b"\x3b"


@dataclass(frozen=True)
class _Still:
    """A GIF of one frame in its parts."""

    header: bytes
    table: bytes  # of colours
    control: bytes  # the frame's duration
    descriptor: bytes
    data: bytes

    @classmethod
    def of(cls, image: Image, duration: int) -> _Still:
        file = io.BytesIO()
        image.save(file, "GIF", duration=duration, interlace=0, optimize=False)
        whole = file.getvalue()
        end = _HEADER + _table_bytes(whole[10])
        start = whole.index(_SEPARATOR, end)
        rest = start + _DESCRIPTOR
        return cls(whole[:_HEADER], whole[_HEADER:end], whole[end:start], whole[start:rest], whole[rest:-1])

    def frame(self, shared_table: bytes) -> bytes:
        """Return the frame, with its own table of colours unless that is the file's."""
        if self.table == shared_table:
            return self.control + self.descriptor + self.data
        flags = self.descriptor[-1] | _HAS_TABLE | self.header[10] & 7
        return self.control + self.descriptor[:-1] + bytes([flags]) + self.table + self.data


def append_frame(path: Path, pixels: Tensor, duration: int) -> None:
    """Append a frame (channels, height, width) that is shown for `duration` milliseconds.

    The first frame settles the size. Grey stays exact; colours are reduced to the frame's best 256.
    """
    image = to_image(pixels)
    if not path.exists():
        still = _Still.of(_reduced(enlarged(image)), duration)
        path.write_bytes(still.header + still.table + _FOREVER + still.frame(still.table) + _TRAILER)
        return
    with path.open("r+b") as file:
        header = file.read(_HEADER)
        table = file.read(_table_bytes(header[10]))
        size = int.from_bytes(header[6:8], "little"), int.from_bytes(header[8:10], "little")
        frame = _Still.of(_reduced(fitted(image, size)), duration).frame(table)
        # The byte that makes the new frame count is written last: a kill in between leaves the GIF as it was.
        trailer = file.seek(-1, io.SEEK_END)
        file.seek(trailer + 1)
        file.write(frame[1:] + _TRAILER)
        file.flush()
        file.seek(trailer)
        file.write(frame[:1])


def end_gif(path: Path) -> None:
    """Put the trailer back on a GIF that was cut where a frame used to end."""
    with path.open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(_TRAILER)


def write_gif(path: Path, frames: Iterable[Tensor], duration: int) -> None:
    """Write a GIF of uint8 frames (channels, height, width)."""
    path.unlink(missing_ok=True)
    for frame in frames:
        append_frame(path, frame, duration)


def _reduced(image: Image) -> Image:
    return image if image.mode == "L" else image.quantize(256)


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _HAS_TABLE else 0
