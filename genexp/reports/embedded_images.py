"""A run's pictures within a page: whole where their weight allows it, small where there are many."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genexp.run_dir.record import RunRecord

if TYPE_CHECKING:
    from PIL.Image import Image

HEAVY = 800_000  # bytes of one picture; a heavier GIF loses frames, a heavier PNG pixels
ALTOGETHER = 5_000_000  # bytes of all pictures of a run's page
LONG_SIDE = 1200  # pixels of a picture that was too heavy
THUMBNAILS = 4_500_000  # bytes of all thumbnails of a page
WIDTHS = (320, 200, 120, 64)  # pixels; the first that is light enough
KINDS = 2  # of pictures that are shown of each run among many
CURVES = "loss"  # figures/loss.png: the page has the curves themselves

_TYPES = {b"GIF8": "gif", b"\x89PNG": "png", b"RIFF": "webp"}
_HEADER = 13  # bytes of a GIF before its colours
_EXTENSION, _IMAGE, _CONTROL = 0x21, 0x2C, 0xF9


@dataclass(frozen=True)
class Picture:
    """A picture as an address that holds it."""

    name: str
    source: str  # data:image/...;base64,...
    page: str | None = None  # a file beside it that shows more


def run_pictures(folder: Path) -> tuple[list[Picture], list[str]]:
    """Return the pictures of a run, animations first, and the names of those left out for their weight."""
    animations = [*sorted(folder.glob("*.gif")), *sorted((folder / "figures").glob("*.gif"))]
    moving = {path.stem for path in animations}
    stills = [path for path in sorted((folder / "figures").glob("*.png")) if path.stem not in moving | {CURVES}]
    pictures, left_out, weight = [], [], 0
    for path in [*animations, *stills]:
        data = _light(path)
        if data is None or weight + len(data) > ALTOGETHER:
            left_out.append(str(path.relative_to(folder)))
            continue
        weight += len(data)
        page = path.with_suffix(".html")
        pictures.append(
            Picture(path.stem, _address(data), str(page.relative_to(folder)) if page.is_file() else None)
        )
    return pictures, left_out


def thumbnails(runs: Sequence[RunRecord]) -> dict[str, dict[RunRecord, Picture]]:
    """Return name → run → a small picture, for the names that most runs have a picture of."""
    found: dict[str, dict[RunRecord, Path]] = {}
    for run in runs:
        for path in sorted((run.run_dir / "figures").glob("*.png")):
            if path.stem not in (CURVES, "latents"):
                found.setdefault(path.stem, {})[run] = path
    names = sorted(found, key=lambda name: -len(found[name]))[:KINDS]
    count = sum(len(found[name]) for name in names)
    small: dict[str, dict[RunRecord, Picture]] = {}
    for name in names:
        for run, path in found[name].items():
            data = _small(path, THUMBNAILS // count)
            if data is not None:
                small.setdefault(name, {})[run] = Picture(name, _address(data))
    return small


def thinned_gif(data: bytes, limit: int) -> bytes:
    """Return a GIF of at most some `limit` bytes: frames in even distances, the first and the last among them.

    For animations of whole frames, as `recorders.growing_gif` writes them.
    """
    head, frames = _split_gif(data)
    weight = sum(map(len, frames))
    kept = max(2, int(len(frames) * limit / weight))
    if kept >= len(frames):
        return data
    places = dict.fromkeys(round(place * (len(frames) - 1) / (kept - 1)) for place in range(kept))
    return head + b"".join(frames[place] for place in places) + b"\x3b"


def _light(path: Path) -> bytes | None:
    """Return a picture's file, made lighter where it is heavy; None where it cannot be read."""
    from PIL import Image

    try:
        data = path.read_bytes()
        if data[:4] not in _TYPES:
            return None
        if len(data) <= HEAVY:
            return data
        if path.suffix == ".gif":
            return thinned_gif(data, HEAVY)
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((LONG_SIDE, LONG_SIDE))
            return _webp(image, quality=85)
    except (OSError, IndexError):
        return None  # half-written when the run was killed


def _small(path: Path, limit: int) -> bytes | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            for width in WIDTHS:
                image.thumbnail((width, 2 * width))
                data = _webp(image, quality=70)
                if len(data) <= limit:
                    return data
    except OSError:
        pass  # half-written when the run was killed
    return None


def _webp(image: Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", quality=quality)
    return file.getvalue()


def _address(data: bytes) -> str:
    return f"data:image/{_TYPES[data[:4]]};base64,{base64.b64encode(data).decode()}"


def _split_gif(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return what stands before the first frame, and the frames."""
    place = _HEADER + _colours(data[10])
    head_ends, begins, frames = 0, 0, []
    while data[place] in (_EXTENSION, _IMAGE):
        if data[place] == _EXTENSION:
            begins = place if data[place + 1] == _CONTROL else begins
            place = _blocks_end(data, place + 2)
            continue
        begins = begins or place
        head_ends = head_ends or begins
        place = _blocks_end(data, place + 10 + _colours(data[place + 9]) + 1)
        frames.append(data[begins:place])
        begins = 0
    return data[:head_ends], frames


def _blocks_end(data: bytes, place: int) -> int:
    while data[place]:
        place += data[place] + 1
    return place + 1


def _colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
