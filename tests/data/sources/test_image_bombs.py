"""Small image files that declare far more pixels than there is memory for."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genexp.cli import sample
from tests.support.command import get_error_line, run_genexp, run_main
from tests.support.compose import make_tiny_overrides


def build_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def build_gif(side: int) -> bytes:
    size = 2 * struct.pack("<H", side)
    frame = b"\x2c" + bytes(4) + size + b"\x00\x02\x02\x44\x01\x00"
    return b"GIF89a" + size + b"\x80\x00\x00" + bytes(6) + frame + b";"


BOMBS = {"png": (build_png, 2**31 - 1), "gif": (build_gif, 65535)}


@pytest.fixture(autouse=True)
def _change_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("build", "side"), BOMBS.values(), ids=BOMBS)
def test_images_of_too_many_pixels_are_skipped_or_refused(build: Callable[[int], bytes], side: int) -> None:
    Path("images").mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{index}.png")
    Path("images/bomb.png").write_bytes(build(side))
    run = [
        word for word in make_tiny_overrides("conv_autoencoder") if not word.startswith(("dataset", "trainer.b"))
    ]
    settings = ("dataset=image_folder", "dataset.root=images", "dataset.size=16", "dataset.channels=1")
    result = run_genexp(*run, *settings, "trainer.batch_size=2", "trainer.max_steps=1", "hydra.run.dir=out")
    assert result.exit_code == 0, result.stderr
    assert "bomb.png" in Path("out/train.log").read_text()
    result = run_main("genexp-sample", sample.main, "out", "reconstructions", "--input", "images/bomb.png")
    assert "bomb.png" in get_error_line(result, "genexp-sample")
    photographs = [word for word in make_tiny_overrides("style_transfer") if not word.startswith("dataset.limit")]
    result = run_genexp(*photographs, "dataset.content=images/bomb.png", "hydra.run.dir=style")
    assert "dataset.content=images/bomb.png" in get_error_line(result, "genexp")


@pytest.mark.parametrize("shape", [(10**12, 2), (2**62, 4), (2**63 - 1, 2), (-(2**40), 2)])
def test_centers_of_too_many_rows_are_refused(shape: tuple[int, int]) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    Path("centers.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    result = run_genexp("model=kmeans", "model.init=centers.npy", "hydra.run.dir=out")
    assert "model.init=centers.npy" in get_error_line(result, "genexp")
