"""Captions and enlargement of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genexp.images.grid import make_grid
from genexp.recorders.pil_images import (
    CAPTION_PIXELS,
    MIN_GRID_WIDTH,
    add_caption,
    enlarge_small_image,
    render_picture,
    to_pil_image,
)
from genexp.technique import PictureLabels
from genexp.training.trainer import to_uint8
from tests.support.snapshots import make_run_info


def make_gray_grid(columns: int = 4) -> Image.Image:
    """Return a grid of two rows of black images of 28×28 pixels."""
    return to_pil_image(to_uint8(make_grid(torch.zeros(2 * columns, 1, 28, 28), columns)))


@pytest.mark.parametrize("columns", [1, 4, 10, 30])
def test_grid_is_enlarged_by_a_whole_number(columns: int) -> None:
    grid = make_gray_grid(columns)
    enlarged = enlarge_small_image(grid)
    factor = enlarged.width // grid.width
    assert enlarged.size == (factor * grid.width, factor * grid.height)
    assert enlarged.width >= MIN_GRID_WIDTH
    assert (factor - 1) * grid.width < MIN_GRID_WIDTH
    assert (np.asarray(enlarged)[::factor, ::factor] == np.asarray(grid)).all()


def test_photograph_is_written_as_it_is(tmp_path: Path) -> None:
    run = make_run_info(tmp_path, picture_labels={"stylized": PictureLabels(is_photograph=True)})
    photograph = Image.new("RGB", (300, 200), "gray")
    assert enlarge_small_image(photograph) is photograph
    assert render_picture(photograph, run, "stylized", "epoch 1") is photograph


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_caption_covers_no_pixel_and_labels_are_beside_their_rows(mode: str) -> None:
    image = Image.new(mode, (640, 300), "black")
    captioned = add_caption(
        image, "title", "epoch 1", PictureLabels(rows=("original", ""), columns=("a", "b", "c"))
    )
    left, top = captioned.width - 640, 2 * CAPTION_PIXELS
    assert captioned.size == (640 + left, 300 + top)
    assert captioned.mode == mode
    pixels = np.asarray(captioned.convert("L"))
    assert (pixels[top:, left:] == 0).all()
    assert (pixels[top : top + 150, :left] < 255).any()  # "original"
    assert (pixels[top + 150 :, :left] == 255).all()
    line = pixels[:CAPTION_PIXELS]
    assert (line[:, :100] < 255).any()  # title
    assert (line[:, -100:] < 255).any()  # position


def test_long_texts_stay_in_the_picture() -> None:
    image = Image.new("L", (200, 50), "black")
    captioned = add_caption(image, "title " * 50, "epoch 1, step 10", PictureLabels(columns=("name" * 30,) * 4))
    assert captioned.size == (200, 50 + 2 * CAPTION_PIXELS)
    gaps = np.asarray(captioned)[CAPTION_PIXELS : 2 * CAPTION_PIXELS, 49:200:50]
    assert (gaps == 255).all()  # no label reaches the next column
