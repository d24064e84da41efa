"""What a technique shows, over the whole run."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from torch import Tensor

from genexp.recorders.images import enlarge_small_image, fit_to_size, to_pil_image
from genexp.recorders.recorder import Recorder
from genexp.snapshot import RunInfo, Snapshot

if TYPE_CHECKING:
    from PIL.Image import Image

_HEADER_BYTES = 13  # bytes: signature and logical screen descriptor
_LOOP_EXTENSION = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
_IMAGE_SEPARATOR, _DESCRIPTOR_BYTES = b"\x2c", 10  # the image descriptor's first byte and length
_COLOR_TABLE_FLAG = 0x80
_TRAILER = b"\x3b"


@final
class PreviewGifs(Recorder):
    """Lets each preview grow into `<name>.gif`, whole after each frame, each shown for `duration` ms."""

    def __init__(self, duration: int = 200) -> None:
        self._duration = duration

    def open(self, run: RunInfo) -> None:
        """Get ready to go on with the GIFs of a resumed run."""
        self._run = run
        self._paths = set(run.run_dir.glob("*.gif")) if run.start_step else set()
        for path in self._paths:
            restore_trailer(path)

    def record(self, snapshot: Snapshot) -> None:
        """Append a frame to the GIF of each picture."""
        if self._run.has_recorded(snapshot.clock.step):
            return
        for name, pixels in snapshot.images.items():
            path = self._run.run_dir / f"{name}.gif"
            if path not in self._paths:
                path.unlink(missing_ok=True)
                self._paths.add(path)
            append_frame(path, pixels, self._duration)

    def append_only_files(self) -> list[Path]:
        """Return the GIFs."""
        return sorted(self._paths)


@dataclass(frozen=True)
class _SingleFrameGif:
    """A GIF of one frame in its parts."""

    header: bytes
    color_table: bytes  # of colors
    graphic_control: bytes  # the frame's duration
    descriptor: bytes
    image_data: bytes

    @classmethod
    def encode(cls, image: Image, duration: int) -> _SingleFrameGif:
        file = io.BytesIO()
        image.save(file, "GIF", duration=duration, interlace=0, optimize=False)
        content = file.getvalue()
        table_end = _HEADER_BYTES + _color_table_bytes(content[10])
        descriptor_start = content.index(_IMAGE_SEPARATOR, table_end)
        data_start = descriptor_start + _DESCRIPTOR_BYTES
        return cls(
            content[:_HEADER_BYTES],
            content[_HEADER_BYTES:table_end],
            content[table_end:descriptor_start],
            content[descriptor_start:data_start],
            content[data_start:-1],
        )

    def build_frame(self, global_color_table: bytes) -> bytes:
        """Return the frame, with its own table of colors unless that is the file's."""
        if self.color_table == global_color_table:
            return self.graphic_control + self.descriptor + self.image_data
        flags = self.descriptor[-1] | _COLOR_TABLE_FLAG | self.header[10] & 7
        return self.graphic_control + self.descriptor[:-1] + bytes([flags]) + self.color_table + self.image_data


def append_frame(path: Path, pixels: Tensor, duration: int) -> None:
    """Append a frame (channels, height, width) that is shown for `duration` milliseconds.

    The first frame settles the size. Gray stays exact; colors are reduced to the frame's best 256.
    """
    image = to_pil_image(pixels)
    if not path.exists():
        gif = _SingleFrameGif.encode(_quantize(enlarge_small_image(image)), duration)
        path.write_bytes(
            gif.header + gif.color_table + _LOOP_EXTENSION + gif.build_frame(gif.color_table) + _TRAILER
        )
        return
    with path.open("r+b") as file:
        header = file.read(_HEADER_BYTES)
        global_color_table = file.read(_color_table_bytes(header[10]))
        size = int.from_bytes(header[6:8], "little"), int.from_bytes(header[8:10], "little")
        frame = _SingleFrameGif.encode(_quantize(fit_to_size(image, size)), duration).build_frame(
            global_color_table
        )
        # The byte that makes the new frame count is written last: a kill in between leaves the GIF as it was.
        trailer_position = file.seek(-1, io.SEEK_END)
        file.seek(trailer_position + 1)
        file.write(frame[1:] + _TRAILER)
        file.flush()
        file.seek(trailer_position)
        file.write(frame[:1])


def restore_trailer(path: Path) -> None:
    """Put the trailer back on a GIF that was cut where a frame used to end."""
    with path.open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(_TRAILER)


def write_gif(path: Path, frames: Iterable[Tensor], duration: int) -> None:
    """Write a GIF of uint8 frames (channels, height, width)."""
    path.unlink(missing_ok=True)
    for frame in frames:
        append_frame(path, frame, duration)


def _quantize(image: Image) -> Image:
    return image if image.mode == "L" else image.quantize(256)


def _color_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _COLOR_TABLE_FLAG else 0
