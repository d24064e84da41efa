"""Data set of a content photograph and a style photograph."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from genexp.errors import DataError
from tests.support.datasets import load_photographs


def test_photographs_keep_their_aspect_ratio() -> None:
    assert load_photographs(100).spec.shapes == {"content": (3, 67, 100), "style": (3, 67, 100)}


def test_photographs_apply_exif_rotation_and_convert_to_rgb(tmp_path: Path) -> None:
    upright = Image.Exif()
    upright[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=upright)
    Image.new("RGBA", (30, 60), (0, 128, 255, 7)).save(tmp_path / "b.png")
    streams = load_photographs(20, content=str(tmp_path / "a.jpg"), style=str(tmp_path / "b.png")).train.streams
    content, style = streams["content"], streams["style"]
    assert isinstance(content, Tensor)
    assert isinstance(style, Tensor)
    assert content.shape == (1, 3, 20, 10)
    assert style.shape == (1, 3, 20, 10)
    assert style[0, :, 0, 0].tolist() == [0, 128, 255]
    Image.new("L", (9, 9), 77).save(tmp_path / "gray.webp", lossless=True)
    gray = load_photographs(9, content=str(tmp_path / "gray.webp")).train.streams["content"]
    assert isinstance(gray, Tensor)
    assert gray.unique().tolist() == [77]


def test_invalid_photographs_fail_with_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    for file, expected_message in (
        (tmp_path / "absent.jpg", "not a file"),
        (broken, "not readable as an image"),
    ):
        with pytest.raises(DataError, match=expected_message) as excinfo:
            load_photographs(content=str(file))
        assert str(excinfo.value).startswith(f"dataset.content={file}")
        assert "\n" not in str(excinfo.value)
