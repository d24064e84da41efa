"""Images of runs as data URIs for HTML pages, compressed to limits on file size."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from genexp.images.animation import encode_animation, thin_evenly
from genexp.run_dir.files import read_file
from genexp.run_dir.paths import FIGURES_DIR, find_animations
from genexp.run_dir.record import RunRecord

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_BYTES = 800_000  # bytes of one image; a larger GIF loses frames, a larger PNG becomes a small WebP
MAX_RUN_IMAGE_BYTES = 5_000_000  # bytes of all images on the page of one run
MAX_GIF_PIXELS = 200_000_000  # in all frames of a GIF that is shortened
MAX_SIDE_PIXELS = 1200  # pixels of the longer side of a downscaled PNG
MAX_THUMBNAIL_BYTES = 4_500_000  # bytes of all thumbnails on a page
THUMBNAIL_WIDTHS = (320, 200, 120, 64)  # pixels; the first width whose file is small enough is used
MAX_THUMBNAILS_PER_RUN = 2  # thumbnails of each run on a page of many runs
CURVES_FIGURE = "loss"  # figures/loss.png, omitted because the page draws the curves itself

_MIME_TYPES = {b"GIF8": "image/gif", b"\x89PNG": "image/png", b"RIFF": "image/webp"}


@dataclass(frozen=True)
class EmbeddedImage:
    """An image or a video encoded as a data URI."""

    name: str  # file name without extension
    data_uri: str  # data:image/...;base64,... or data:video/mp4;base64,...
    linked_page: str | None = None  # relative URL of an interactive version

    @property
    def is_video(self) -> bool:
        """Whether a page must show it with a video element."""
        return self.data_uri.startswith("data:video/")


def embed_run_images(run_dir: Path) -> tuple[list[EmbeddedImage], list[str]]:
    """Return the images of a run, animations first, and the relative paths of omitted files.

    A file is omitted if it cannot be read, or if it would exceed `MAX_RUN_IMAGE_BYTES`.
    """
    animations = [*find_animations(run_dir), *find_animations(run_dir / FIGURES_DIR)]
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
                path.stem,
                _build_data_uri(data),
                quote(os.fsencode(page.relative_to(run_dir))) if page.is_file() else None,
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

    At least two frames are kept: the first and the last. Raises OSError if `data` is damaged, or its frames would
    take more memory than those of any animation that a run writes.
    """
    from PIL import Image, ImageSequence

    with Image.open(io.BytesIO(data)) as gif:
        if getattr(gif, "n_frames", 1) * gif.width * gif.height > MAX_GIF_PIXELS:
            raise OSError("too many pixels")
        frames = [
            (np.asarray(frame.convert("RGB")), frame.info.get("duration", 0))
            for frame in ImageSequence.Iterator(gif)
        ]
    indices = thin_evenly(len(frames), max(2, int(len(frames) * max_bytes / len(data))))
    return encode_animation((frames[index][0] for index in indices), "gif", min(ms for _, ms in frames))


def _read_compressed(path: Path) -> bytes | None:
    """Return the bytes of an image or video file, or None if it cannot be read.

    Above `MAX_IMAGE_BYTES`, an image is compressed. A video is not: None is returned.
    """
    from PIL import Image

    try:
        data = read_file(path)
        mime_type = _find_mime_type(data)
        if mime_type is None or len(data) <= MAX_IMAGE_BYTES:
            return data if mime_type else None
        if mime_type.startswith("video/"):
            return None
        if path.suffix == ".gif":
            return drop_gif_frames(data, MAX_IMAGE_BYTES)
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS))
            return _encode_webp(image, quality=85)
    except Exception:  # Pillow's plugins raise any exception on damaged files
        return None


def _read_thumbnail(path: Path, max_bytes: int) -> bytes | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            image.load()
            for width in THUMBNAIL_WIDTHS:
                image.thumbnail((width, 2 * width))
                data = _encode_webp(image, quality=70)
                if len(data) <= max_bytes:
                    return data
    except Exception:  # as above
        return None
    return None


def _encode_webp(image: Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", quality=quality)
    return file.getvalue()


def _build_data_uri(data: bytes) -> str:
    return f"data:{_find_mime_type(data)};base64,{base64.b64encode(data).decode()}"


def _find_mime_type(data: bytes) -> str | None:
    """Return the MIME type of a file's content, None if pages cannot show it."""
    return "video/mp4" if data[4:8] == b"ftyp" else _MIME_TYPES.get(data[:4])
