"""Images embedded in pages that consist of one file."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from genexp.reports.comparison import compare
from genexp.reports.run_report import write_run_report
from genexp.reports.sweep_report import write_sweep_report
from tests.support.images import write_noise_image
from tests.support.run_dirs import make_run_dir


def test_large_files_are_omitted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run_dir(tmp_path / "run")
    for name, side in (("samples", 40), ("generated", 80)):
        write_noise_image(run_dir / "figures" / f"{name}.png", (side, side), 0)
    monkeypatch.setattr("genexp.reports.embedded_images.MAX_IMAGE_BYTES", 5_000)
    text = write_run_report(run_dir, is_single_file=True).read_text()
    (data,) = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="samples"', text)
    assert base64.b64decode(data) == (run_dir / "figures" / "samples.png").read_bytes()
    assert "Not shown (too large or damaged): figures/generated.png" in text


@pytest.mark.parametrize(("max_pixels", "width"), [(10**9, 320), (2 * 100**2, 100), (1, 64)])
def test_thumbnails_of_many_runs_share_a_limit(
    max_pixels: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genexp.reports.embedded_images.MAX_THUMBNAIL_PIXELS", max_pixels)
    for seed in (0, 1):
        run_dir = make_run_dir(tmp_path / str(seed), overrides={"seed": seed})
        write_noise_image(run_dir / "figures" / "samples.png", (400, 400), seed)
    page = tmp_path / "page.html"
    write_sweep_report(compare([tmp_path]), page, is_single_file=True)
    images = re.findall(r'src="data:image/webp;base64,([^"]+)"', page.read_text())
    sizes = [Image.open(io.BytesIO(base64.b64decode(image))).size for image in images]
    assert sizes == [(width, width)] * 2
