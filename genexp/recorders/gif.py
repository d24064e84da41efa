"""Recorder of preview GIFs, and a GIF writer that appends frames without rewriting the file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from torch import Tensor

from genexp.recorders.pil_images import enlarge_small_image, fit_to_size, to_pil_image
from genexp.recorders.recorder import Recorder
from genexp.snapshot import RunInfo, Snapshot

if TYPE_CHECKING:
    from PIL.Image import Image

_HEADER_BYTES = 13  # signature and logical screen descriptor
_LOOP_EXTENSION = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"  # repeats forever
_IMAGE_SEPARATOR, _DESCRIPTOR_BYTES = b"\x2c", 10  # the image descriptor's first byte and length
_COLOR_TABLE_FLAG = 0x80  # bit of the flags byte: a color table follows
_TRAILER = b"\x3b"


@final
class PreviewGifRecorder(Recorder):
    """Recorder of `<name>.gif`, one for each preview. A frame is shown for `frame_duration_ms` milliseconds.

    After each appended frame, the file is a complete GIF.
    """

    def __init__(self, frame_duration_ms: int = 200) -> None:
        self._frame_duration_ms = frame_duration_ms

    def open(self, run: RunInfo) -> None:
        """Restore the trailers of the GIFs of a resumed run, which were truncated."""
        self._run = run
        self._paths = set(run.run_dir.glob("*.gif")) if run.completed_steps else set()
        for path in self._paths:
            restore_trailer(path)

    def record(self, snapshot: Snapshot) -> None:
        """Append a frame to the GIF of each preview."""
        if self._run.is_recorded(snapshot.clock.step):
            return
        for name, pixels in snapshot.preview_images.items():
            path = self._run.run_dir / f"{name}.gif"
            if path not in self._paths:
                path.unlink(missing_ok=True)
                self._paths.add(path)
            append_frame(path, pixels, self._frame_duration_ms)

    def append_only_files(self) -> list[Path]:
        """Return the paths of the GIFs."""
        return sorted(self._paths)


@dataclass(frozen=True)
class _SingleFrameGif:
    """Parts of an encoded GIF with one frame."""

    header: bytes
    color_table: bytes  # RGB, 3 bytes for each color; empty if there is none
    graphic_control: bytes  # extensions before the frame, with its duration
    descriptor: bytes  # position, size and flags of the frame
    image_data: bytes  # LZW data, without the trailer of the file

    @classmethod
    def encode(cls, image: Image, frame_duration_ms: int) -> _SingleFrameGif:
        """Encode `image` with Pillow and split the result."""
        file = io.BytesIO()
        image.save(file, "GIF", duration=frame_duration_ms, interlace=0, optimize=False)
        content = file.getvalue()
        table_end = _HEADER_BYTES + _get_color_table_size(content[10])
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
        """Return the bytes of the frame, with its own color table unless it equals the global one."""
        if self.color_table == global_color_table:
            return self.graphic_control + self.descriptor + self.image_data
        flags = self.descriptor[-1] | _COLOR_TABLE_FLAG | self.header[10] & 7
        return self.graphic_control + self.descriptor[:-1] + bytes([flags]) + self.color_table + self.image_data


def append_frame(path: Path, pixels: Tensor, frame_duration_ms: int) -> None:
    """Append a uint8 frame (channels, height, width), shown for `frame_duration_ms` milliseconds.

    The first frame determines the size of the GIF. Gray values are exact. Colors are quantized to 256 for
    each frame.
    """
    image = to_pil_image(pixels)
    if not path.exists():
        gif = _SingleFrameGif.encode(_quantize(enlarge_small_image(image)), frame_duration_ms)
        path.write_bytes(
            gif.header + gif.color_table + _LOOP_EXTENSION + gif.build_frame(gif.color_table) + _TRAILER
        )
        return
    with path.open("r+b") as file:
        header = file.read(_HEADER_BYTES)
        global_color_table = file.read(_get_color_table_size(header[10]))
        size = int.from_bytes(header[6:8], "little"), int.from_bytes(header[8:10], "little")
        frame = _SingleFrameGif.encode(_quantize(fit_to_size(image, size)), frame_duration_ms).build_frame(
            global_color_table
        )
        # The first byte of the frame replaces the old trailer and is written last. If the process is killed
        # before, the old trailer still ends the GIF.
        trailer_position = file.seek(-1, io.SEEK_END)
        file.seek(trailer_position + 1)
        file.write(frame[1:] + _TRAILER)
        file.flush()
        file.seek(trailer_position)
        file.write(frame[:1])


def restore_trailer(path: Path) -> None:
    """Write the trailer over the last byte of a GIF that was truncated to its size after an earlier frame.

    That byte was the trailer until the next frame overwrote it.
    """
    with path.open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(_TRAILER)


def write_gif(path: Path, frames: Iterable[Tensor], frame_duration_ms: int) -> None:
    """Write a GIF of uint8 frames (channels, height, width), each shown for `frame_duration_ms` milliseconds."""
    path.unlink(missing_ok=True)
    for frame in frames:
        append_frame(path, frame, frame_duration_ms)


def _quantize(image: Image) -> Image:
    return image if image.mode == "L" else image.quantize(256)


def _get_color_table_size(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _COLOR_TABLE_FLAG else 0
