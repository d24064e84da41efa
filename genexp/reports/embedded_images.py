"""Images of runs on HTML pages: relative URLs of their files, or data URIs of pages that consist of one file."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from genexp.images.animation import encode_animation, thin_evenly
from genexp.run_dir.files import open_regular_file, read_file
from genexp.run_dir.paths import CURVES_FIGURE, FIGURES_DIR, LATENTS_FIGURE, PREVIEWS_DIR, find_animations
from genexp.run_dir.record import RunRecord

MAX_IMAGE_BYTES = (
    800_000  # bytes of an embedded image; a larger GIF loses frames, a larger PNG becomes a small WebP
)
MAX_RUN_IMAGE_BYTES = 5_000_000  # bytes of all embedded images on the page of one run
MAX_GIF_PIXELS = 200_000_000  # in all frames of a GIF that is shortened
MAX_SIDE_PIXELS = 1200  # pixels of the longer side of a downscaled PNG
MAX_THUMBNAIL_BYTES = 4_500_000  # bytes of all embedded images on a page of many runs
THUMBNAIL_WIDTHS = (320, 200, 120, 64)  # pixels; the first width whose file is small enough is used
MAX_THUMBNAILS_PER_RUN = 2  # images of each run on a page of many runs
MAX_LABEL_CHARACTERS = 500
FIRST_NAMES = (
    "samples",
    "generated",
    "translations",
    "stylized",
)  # what was made comes before what it was made of

_MIME_TYPES = {b"GIF8": "image/gif", b"\x89PNG": "image/png", b"RIFF": "image/webp"}


@dataclass(frozen=True)
class PageImage:
    """An image or a video on a page."""

    name: str  # file name without extension
    url: str  # relative, or a data URI
    is_video: bool = False
    linked_page: str | None = None  # relative URL of an interactive version
    frames: Sequence[tuple[int, str]] = ()  # step and URL of the previews, of which `url` is the last
    caption: str = ""  # labels of the rows and columns of the previews
    is_photograph: bool = False  # not a grid of small images, whose pixels are to be seen


def find_run_images(run_dir: Path, *, is_embedded: bool = False) -> tuple[list[PageImage], list[str]]:
    """Return the images of a run, those of the training first, and the relative paths of omitted files.

    A file is omitted if it is damaged. Of embedded images, the whole has at most `MAX_RUN_IMAGE_BYTES` bytes.
    """
    previews = [] if is_embedded else _find_previews(run_dir)
    previewed_names = {image.name for image in previews}
    animations = [*find_animations(run_dir), *find_animations(run_dir / FIGURES_DIR)]
    animated_names = {path.stem for path in animations}
    stills = [
        path
        for path in sorted((run_dir / FIGURES_DIR).glob("*.png"))
        if path.stem not in animated_names and path.name != CURVES_FIGURE
    ]
    images, omitted_files, total_bytes = list(previews), [], 0
    for path in [*animations, *stills]:
        if path.stem in previewed_names:
            continue
        data = _read_compressed(path) if is_embedded else _read_start(path)
        if data is None or total_bytes + len(data) > MAX_RUN_IMAGE_BYTES:
            omitted_files.append(str(path.relative_to(run_dir)))
            continue
        total_bytes += len(data) if is_embedded else 0
        url = _build_data_uri(data) if is_embedded else build_relative_url(path, run_dir)
        page = path.with_suffix(".html")
        linked_page = build_relative_url(page, run_dir) if page.is_file() and not is_embedded else None
        is_video = _find_mime_type(data) == "video/mp4"
        images.append(PageImage(path.stem, url, is_video=is_video, linked_page=linked_page))
    images.sort(key=lambda image: image.name not in FIRST_NAMES)
    return images, omitted_files


def find_figures(runs: Sequence[RunRecord], page: Path | None) -> dict[str, dict[RunRecord, PageImage]]:
    """Return figure name → run → image, for the `MAX_THUMBNAILS_PER_RUN` figures that the most runs have.

    URLs are relative to `page`. Without it, small images are embedded.
    """
    paths: dict[str, dict[RunRecord, Path]] = {}
    for run in runs:
        for path in sorted((run.run_dir / FIGURES_DIR).glob("*.png")):
            if path.name not in (CURVES_FIGURE, LATENTS_FIGURE):
                paths.setdefault(path.stem, {})[run] = path
    names = sorted(paths, key=lambda name: -len(paths[name]))[:MAX_THUMBNAILS_PER_RUN]
    count = sum(len(paths[name]) for name in names)
    images: dict[str, dict[RunRecord, PageImage]] = {}
    for name in names:
        for run, path in paths[name].items():
            data = _read_start(path) if page else _read_thumbnail(path, MAX_THUMBNAIL_BYTES // count)
            if data:
                url = build_relative_url(path, page.parent) if page else _build_data_uri(data)
                images.setdefault(name, {})[run] = PageImage(name, url)
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


def _find_previews(run_dir: Path) -> list[PageImage]:
    images = []
    for directory in sorted((run_dir / PREVIEWS_DIR).glob("*/")):
        paths = sorted(path for path in directory.glob("*.png") if path.stem.isdecimal() and path.stem.isascii())
        frames = [
            (int(path.stem), build_relative_url(path, run_dir)) for path in paths if _read_start(path) is not None
        ]
        if frames:
            caption, is_photograph = _read_labels(paths[-1])
            image = PageImage(
                directory.name, frames[-1][1], frames=frames, caption=caption, is_photograph=is_photograph
            )
            images.append(image)
    return images


def _read_labels(path: Path) -> tuple[str, bool]:
    """Return the labels in a preview, as one line, and whether it is a photograph."""
    from PIL import Image

    try:
        with open_regular_file(path) as file, Image.open(file) as image:
            labels = json.loads(image.info.get("labels", "{}"))
        parts = [
            f"{axis}: {', '.join(map(str, labels[axis]))}" for axis in ("rows", "columns") if labels.get(axis)
        ]
        return "; ".join(parts)[:MAX_LABEL_CHARACTERS], bool(labels.get("is_photograph"))
    except Exception:  # Pillow's plugins raise any exception on damaged files
        return "", False


def build_relative_url(target: Path, directory: Path) -> str:
    """Return the URL of `target` relative to `directory`."""
    return quote(os.fsencode(os.path.relpath(target.resolve(), directory.resolve())))


def _read_start(path: Path) -> bytes | None:
    """Return the first bytes of a file, or None if pages cannot show it."""
    try:
        with open_regular_file(path) as file:
            data = file.read(16)
    except OSError:
        return None
    return data if len(data) == 16 and _find_mime_type(data) else None


def _read_compressed(path: Path) -> bytes | None:
    """Return the bytes of an image or video file, or None if it cannot be read.

    Above `MAX_IMAGE_BYTES`, an image is compressed. A video is not: None is returned.
    """
    data = _read_image(path, lambda image: _encode_webp(image, MAX_SIDE_PIXELS, quality=85), MAX_IMAGE_BYTES)
    return data if data and _find_mime_type(data) else None


def _read_thumbnail(path: Path, max_bytes: int) -> bytes | None:
    def encode(image: Any) -> bytes | None:
        encoded = (_encode_webp(image, width, quality=70) for width in THUMBNAIL_WIDTHS)
        return next((data for data in encoded if len(data) <= max_bytes), None)

    return _read_image(path, encode, 0)


def _read_image(path: Path, encode: Callable[[Any], bytes | None], max_bytes: int) -> bytes | None:
    """Return the bytes of a file. Of an image with more than `max_bytes`, return what `encode` makes of it."""
    from PIL import Image

    try:
        data = read_file(path)
        if len(data) <= max_bytes:
            return data
        if path.suffix == ".gif":
            return drop_gif_frames(data, max_bytes)
        with Image.open(io.BytesIO(data)) as image:
            return encode(image)
    except Exception:  # as above, and also of videos
        return None


def _encode_webp(image: Any, side: int, quality: int) -> bytes:
    file, smaller = io.BytesIO(), image.copy()
    smaller.thumbnail((side, 2 * side))
    smaller.convert("RGB").save(file, "WEBP", quality=quality)
    return file.getvalue()


def _build_data_uri(data: bytes) -> str:
    return f"data:{_find_mime_type(data)};base64,{base64.b64encode(data).decode()}"


def _find_mime_type(data: bytes) -> str | None:
    """Return the MIME type of a file's content, None if pages cannot show it."""
    return "video/mp4" if data[4:8] == b"ftyp" else _MIME_TYPES.get(data[:4])
