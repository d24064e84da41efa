"""Fonts for Chinese, Japanese and Korean class names."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import matplotlib as mpl
import pytest
import torch
from matplotlib import font_manager

from genexp.images import fonts
from genexp.images.scatter import draw_clusters

NAMES = ("사과", "banana")


@pytest.fixture
def no_cjk_font(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    monkeypatch.setattr(fonts, "CJK_FAMILIES", ("No such font",))
    fonts._find_cjk_font.cache_clear()
    yield
    fonts._find_cjk_font.cache_clear()


@pytest.mark.parametrize(
    ("text", "is_cjk"), [("사과", True), ("バナナ", True), ("葡萄", True), ("Éclair β 1", False)]
)
def test_texts_that_need_a_font_are_recognized(text: str, is_cjk: bool) -> None:
    assert fonts.needs_cjk_font(text) == is_cjk


def test_missing_font_is_one_warning(no_cjk_font: None, caplog: pytest.LogCaptureFixture) -> None:
    points, labels = torch.rand(6, 2), torch.arange(6) % 2
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            draw_clusters(points, labels, cluster_names=NAMES)
    assert [record.getMessage() for record in caplog.records] == [fonts.MISSING_FONT_MESSAGE]
    assert fonts.find_cjk_font_path() is None


def test_installed_font_is_used_where_a_name_needs_it() -> None:
    path = fonts.find_cjk_font_path()
    if path is None:
        pytest.skip("no font with Chinese, Japanese or Korean glyphs is installed")
    with fonts.use_fonts_for(NAMES):
        own_family, family = mpl.rcParams["font.family"]
    assert own_family == "DejaVu Sans"
    assert path in {font.fname for font in font_manager.fontManager.ttflist if font.name == family}
    with fonts.use_fonts_for(("banana",)):
        assert mpl.rcParams["font.family"] == ["DejaVu Sans"]
