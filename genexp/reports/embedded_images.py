"""Images of runs on HTML pages: relative URLs of their files, or data URIs of pages that consist of one file."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from genexp.run_dir.files import open_regular_file, read_file
from genexp.run_dir.paths import CURVES_FIGURE, FIGURES_DIR, LATENTS_FIGURE, PREVIEWS_DIR, find_animations
from genexp.run_dir.record import RunRecord

MAX_IMAGE_BYTES = 3_000_000  # of an embedded file; larger ones are omitted
MAX_RUN_IMAGE_BYTES = 10_000_000  # of all embedded files on the page of one run
MAX_THUMBNAIL_PIXELS = 20_000_000  # of all embedded images on a page of many runs; a pixel has about 0.2 bytes
THUMBNAIL_WIDTHS = (64, 320)  # smallest and largest, in pixels
MAX_THUMBNAILS_PER_RUN = 2  # images of each run on a page of many runs
MAX_LABEL_CHARACTERS = 500
# What was made comes before what it was made of.
FIRST_NAMES = ("samples", "generated", "translations", "stylized")

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

    A file is omitted if it is damaged, or if it would be embedded and is too large.
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
        data = _read_start(path)
        size = path.stat().st_size if data and is_embedded else 0
        if data is None or size > MAX_IMAGE_BYTES or total_bytes + size > MAX_RUN_IMAGE_BYTES:
            omitted_files.append(str(path.relative_to(run_dir)))
            continue
        total_bytes += size
        url = _build_data_uri(read_file(path)) if is_embedded else build_relative_url(path, run_dir)
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
    area = MAX_THUMBNAIL_PIXELS / max(1, sum(len(paths[name]) for name in names))
    images: dict[str, dict[RunRecord, PageImage]] = {}
    for name in names:
        for run, path in paths[name].items():
            data = _read_start(path) if page else _read_thumbnail(path, math.isqrt(int(area)))
            if data:
                url = build_relative_url(path, page.parent) if page else _build_data_uri(data)
                images.setdefault(name, {})[run] = PageImage(name, url)
    return images


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


def _read_thumbnail(path: Path, side: int) -> bytes | None:
    """Return an image as WebP, or None if it is damaged.

    It is at most `side` pixels wide. `side` is limited to the range THUMBNAIL_WIDTHS.
    """
    from PIL import Image

    width, content = min(max(side, THUMBNAIL_WIDTHS[0]), THUMBNAIL_WIDTHS[1]), io.BytesIO()
    try:
        with open_regular_file(path) as file, Image.open(file) as image:
            image.thumbnail((width, 2 * width))
            image.convert("RGB").save(content, "WEBP", quality=70)
    except Exception:  # as above
        return None
    return content.getvalue()


def _build_data_uri(data: bytes) -> str:
    return f"data:{_find_mime_type(data)};base64,{base64.b64encode(data).decode()}"


def _find_mime_type(data: bytes) -> str | None:
    """Return the MIME type of a file's content, None if pages cannot show it."""
    return "video/mp4" if data[4:8] == b"ftyp" else _MIME_TYPES.get(data[:4])
