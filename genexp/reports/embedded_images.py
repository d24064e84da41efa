"""A run's pictures within a page: whole where their weight allows it, small where there are many."""

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

MAX_IMAGE_BYTES = 800_000  # bytes of one picture; a heavier GIF loses frames, a heavier PNG pixels
MAX_RUN_IMAGE_BYTES = 5_000_000  # bytes of all pictures of a run's page
MAX_SIDE_PIXELS = 1200  # pixels of a picture that was too heavy
MAX_THUMBNAIL_BYTES = 4_500_000  # bytes of all thumbnails of a page
THUMBNAIL_WIDTHS = (320, 200, 120, 64)  # pixels; the first that is light enough
MAX_THUMBNAILS_PER_RUN = 2  # of pictures that are shown of each run among many
CURVES_FIGURE = "loss"  # figures/loss.png: the page has the curves themselves

_MIME_SUBTYPES = {b"GIF8": "gif", b"\x89PNG": "png", b"RIFF": "webp"}
_GIF_HEADER_BYTES = 13  # bytes of a GIF before its colors
_EXTENSION_INTRODUCER, _IMAGE_SEPARATOR, _GRAPHIC_CONTROL_LABEL = 0x21, 0x2C, 0xF9


@dataclass(frozen=True)
class EmbeddedImage:
    """A picture as an address that holds it."""

    name: str
    data_uri: str  # data:image/...;base64,...
    linked_page: str | None = None  # a file beside it that shows more


def embed_run_images(run_dir: Path) -> tuple[list[EmbeddedImage], list[str]]:
    """Return the pictures of a run, animations first, and the names of those left out for their weight."""
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
    """Return name → run → a small picture, for the names that most runs have a picture of."""
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
    """Return a GIF of at most some `limit` bytes: frames in even distances, the first and the last among them.

    For animations of whole frames, as `recorders.growing_gif` writes them.
    """
    header, frames = _split_gif(data)
    frame_bytes = sum(map(len, frames))
    kept_count = max(2, int(len(frames) * max_bytes / frame_bytes))
    if kept_count >= len(frames):
        return data
    indices = dict.fromkeys(round(index * (len(frames) - 1) / (kept_count - 1)) for index in range(kept_count))
    return header + b"".join(frames[place] for place in indices) + b"\x3b"


def _read_compressed(path: Path) -> bytes | None:
    """Return a picture's file, made lighter where it is heavy; None where it cannot be read."""
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
        return None  # half-written when the run was killed


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
        pass  # half-written when the run was killed
    return None


def _encode_webp(image: Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", quality=quality)
    return file.getvalue()


def _build_data_uri(data: bytes) -> str:
    return f"data:image/{_MIME_SUBTYPES[data[:4]]};base64,{base64.b64encode(data).decode()}"


def _split_gif(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return what stands before the first frame, and the frames."""
    offset = _GIF_HEADER_BYTES + _color_table_bytes(data[10])
    header_end, frame_start, frames = 0, 0, []
    while data[offset] in (_EXTENSION_INTRODUCER, _IMAGE_SEPARATOR):
        if data[offset] == _EXTENSION_INTRODUCER:
            frame_start = offset if data[offset + 1] == _GRAPHIC_CONTROL_LABEL else frame_start
            offset = _skip_sub_blocks(data, offset + 2)
            continue
        frame_start = frame_start or offset
        header_end = header_end or frame_start
        offset = _skip_sub_blocks(data, offset + 10 + _color_table_bytes(data[offset + 9]) + 1)
        frames.append(data[frame_start:offset])
        frame_start = 0
    return data[:header_end], frames


def _skip_sub_blocks(data: bytes, offset: int) -> int:
    while data[offset]:
        offset += data[offset] + 1
    return offset + 1


def _color_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
