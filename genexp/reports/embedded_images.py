"""Images of runs as data URIs for HTML pages, compressed to limits on file size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genexp.run_dir.paths import FIGURES_DIR
from genexp.run_dir.record import RunRecord

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_BYTES = 800_000  # bytes of one image; a larger GIF loses frames, a larger PNG becomes a small WebP
MAX_RUN_IMAGE_BYTES = 5_000_000  # bytes of all images on the page of one run
MAX_SIDE_PIXELS = 1200  # pixels of the longer side of a downscaled PNG
MAX_THUMBNAIL_BYTES = 4_500_000  # bytes of all thumbnails on a page
THUMBNAIL_WIDTHS = (320, 200, 120, 64)  # pixels; the first width whose file is small enough is used
MAX_THUMBNAILS_PER_RUN = 2  # thumbnails of each run on a page of many runs
CURVES_FIGURE = "loss"  # figures/loss.png, left out because the page draws the curves itself

_MIME_SUBTYPES = {b"GIF8": "gif", b"\x89PNG": "png", b"RIFF": "webp"}
_GIF_HEADER_BYTES = 13  # GIF signature and logical screen descriptor, before the global color table
_EXTENSION_INTRODUCER, _IMAGE_SEPARATOR, _GRAPHIC_CONTROL_LABEL = 0x21, 0x2C, 0xF9


@dataclass(frozen=True)
class EmbeddedImage:
    """An image encoded as a data URI."""

    name: str  # file name without extension
    data_uri: str  # data:image/...;base64,...
    linked_page: str | None = None  # path of an interactive version, relative to the run directory


def embed_run_images(run_dir: Path) -> tuple[list[EmbeddedImage], list[str]]:
    """Return the images of a run, animations first, and the relative paths of omitted files.

    A file is omitted if it cannot be read, or if it would exceed `MAX_RUN_IMAGE_BYTES`.
    """
    animations = [*sorted(run_dir.glob("*.gif")), *sorted((run_dir / FIGURES_DIR).glob("*.gif"))]
    animated_names = {path.stem for path in animations}
    still_images = [
        path
        for path in sorted((run_dir / FIGURES_DIR).glob("*.png"))
        if path.stem not in animated_names | {CURVES_FIGURE}
    ]
    images, omitted_files, total_bytes = [], [], 0
    for path in [*animations, *still_images]:
        data = _read_compressed(path)
        if data is None or total_bytes + len(data) > MAX_RUN_IMAGE_BYTES:
            omitted_files.append(str(path.relative_to(run_dir)))
            continue
        total_bytes += len(data)
        page = path.with_suffix(".html")
        images.append(
            EmbeddedImage(
                path.stem, _build_data_uri(data), str(page.relative_to(run_dir)) if page.is_file() else None
            )
        )
    return images, omitted_files


def build_thumbnails(runs: Sequence[RunRecord]) -> dict[str, dict[RunRecord, EmbeddedImage]]:
    """Return figure name → run → thumbnail, for the `MAX_THUMBNAILS_PER_RUN` figures that the most runs have."""
    paths: dict[str, dict[RunRecord, Path]] = {}
    for run in runs:
        for path in sorted((run.run_dir / FIGURES_DIR).glob("*.png")):
            if path.stem not in (CURVES_FIGURE, "latents"):
                paths.setdefault(path.stem, {})[run] = path
    names = sorted(paths, key=lambda name: -len(paths[name]))[:MAX_THUMBNAILS_PER_RUN]
    count = sum(len(paths[name]) for name in names)
    images: dict[str, dict[RunRecord, EmbeddedImage]] = {}
    for name in names:
        for run, path in paths[name].items():
            data = _read_thumbnail(path, MAX_THUMBNAIL_BYTES // count)
            if data is not None:
                images.setdefault(name, {})[run] = EmbeddedImage(name, _build_data_uri(data))
    return images


def drop_gif_frames(data: bytes, max_bytes: int) -> bytes:
    """Return a GIF with evenly spaced frames of `data`, of about `max_bytes` bytes.

    At least two frames are kept: the first and the last. Frames must not depend on each other, as in the files of
    `genexp.recorders.gif`.
    """
    header, frames = _split_gif(data)
    frame_bytes = sum(map(len, frames))
    kept_count = max(2, int(len(frames) * max_bytes / frame_bytes))
    if kept_count >= len(frames):
        return data
    indices = dict.fromkeys(round(index * (len(frames) - 1) / (kept_count - 1)) for index in range(kept_count))
    return header + b"".join(frames[index] for index in indices) + b"\x3b"


def _read_compressed(path: Path) -> bytes | None:
    """Return the bytes of an image file, compressed above `MAX_IMAGE_BYTES`. Return None if it cannot be read."""
    from PIL import Image

    try:
        data = path.read_bytes()
        if data[:4] not in _MIME_SUBTYPES:
            return None
        if len(data) <= MAX_IMAGE_BYTES:
            return data
        if path.suffix == ".gif":
            return drop_gif_frames(data, MAX_IMAGE_BYTES)
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS))
            return _encode_webp(image, quality=85)
    except (OSError, IndexError):
        return None  # incomplete file of a killed run


def _read_thumbnail(path: Path, max_bytes: int) -> bytes | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            for width in THUMBNAIL_WIDTHS:
                image.thumbnail((width, 2 * width))
                data = _encode_webp(image, quality=70)
                if len(data) <= max_bytes:
                    return data
    except OSError:
        pass  # incomplete file of a killed run
    return None


def _encode_webp(image: Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", quality=quality)
    return file.getvalue()


def _build_data_uri(data: bytes) -> str:
    return f"data:image/{_MIME_SUBTYPES[data[:4]]};base64,{base64.b64encode(data).decode()}"


def _split_gif(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return the bytes before the first frame, and the bytes of each frame. Raises IndexError if incomplete."""
    offset = _GIF_HEADER_BYTES + _get_color_table_size(data[10])
    header_end, frame_start, frames = 0, 0, []
    while data[offset] in (_EXTENSION_INTRODUCER, _IMAGE_SEPARATOR):
        if data[offset] == _EXTENSION_INTRODUCER:
            frame_start = offset if data[offset + 1] == _GRAPHIC_CONTROL_LABEL else frame_start
            offset = _skip_sub_blocks(data, offset + 2)
            continue
        frame_start = frame_start or offset
        header_end = header_end or frame_start
        offset = _skip_sub_blocks(data, offset + 10 + _get_color_table_size(data[offset + 9]) + 1)
        frames.append(data[frame_start:offset])
        frame_start = 0
    return data[:header_end], frames


def _skip_sub_blocks(data: bytes, offset: int) -> int:
    """Return the offset behind a sequence of GIF data sub-blocks, which ends with an empty one."""
    while data[offset]:
        offset += data[offset] + 1
    return offset + 1


def _get_color_table_size(flags: int) -> int:
    """Return the size in bytes of the color table that a descriptor's packed field announces."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
