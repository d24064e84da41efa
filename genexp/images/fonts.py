"""Installed fonts with Chinese, Japanese and Korean glyphs, which matplotlib's and Pillow's own fonts lack."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

# Families by operating system: Noto and Nanum on Linux; Apple's; Microsoft's.
CJK_FAMILIES = (
    *(
        "Noto Sans CJK KR",
        "Noto Sans CJK JP",
        "Noto Sans CJK SC",
        "Noto Sans KR",
        "NanumGothic",
        "WenQuanYi Zen Hei",
    ),
    *("Apple SD Gothic Neo", "AppleGothic", "Hiragino Sans", "PingFang SC", "Arial Unicode MS"),
    *("Malgun Gothic", "Yu Gothic", "Microsoft YaHei"),
)
# Hangul, kana, ideographs and their full-width forms.
CJK_PATTERN = re.compile("[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef]")
CJK_FILE_PATTERN = re.compile(
    "cjk|noto ?sans ?kr|nanum|wqy|gothic|hiragino|pingfang|arial ?unicode|malgun|yugoth|msyh", re.IGNORECASE
)
MISSING_FONT_MESSAGE = (
    "class names with Chinese, Japanese or Korean letters: no font for them is installed, so that figures show "
    "boxes. Install one, for example Noto Sans CJK."
)


def needs_cjk_font(text: str) -> bool:
    """Return whether `text` has a Chinese, Japanese or Korean letter."""
    return CJK_PATTERN.search(text) is not None


@cache
def _find_cjk_font() -> tuple[str, str] | None:
    """Return family and path of the first installed font of CJK_FAMILIES, or None. Logs a warning in that case."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    # Matplotlib's list of fonts may be older than an installed font.
    known_paths = {font.fname for font in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known_paths and CJK_FILE_PATTERN.search(Path(path).name):
            with suppress(OSError, RuntimeError):  # a file that FreeType cannot read
                fontManager.addfont(path)
    paths = {font.name: font.fname for font in reversed(fontManager.ttflist)}
    for family in CJK_FAMILIES:
        if family in paths:
            return family, paths[family]
    log.warning(MISSING_FONT_MESSAGE)
    return None


def find_cjk_font_path() -> str | None:
    """Return the path of an installed font with CJK glyphs, or None."""
    font = _find_cjk_font()
    return font[1] if font else None


@contextmanager
def use_fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Add an installed font with CJK glyphs to matplotlib's fonts within the block, if `texts` need one."""
    from matplotlib import rc_context

    font = _find_cjk_font() if any(map(needs_cjk_font, texts)) else None
    with rc_context({"font.family": ["DejaVu Sans", *([font[0]] if font else [])]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # `_find_cjk_font` warns once
        yield
