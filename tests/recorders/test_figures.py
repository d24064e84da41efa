"""Figures of a run: curves, previews, galleries and latent plots."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genexp.recorders.figures import FigureRecorder
from genexp.recorders.metrics_log import MetricsRecorder
from genexp.recorders.pil_images import CAPTION_PIXELS
from genexp.snapshot import Curve, FinalArtifacts, RunOutcome, Snapshot
from tests.support.snapshots import (
    FINISHED_OUTCOME,
    make_clock,
    make_image,
    make_run_info,
    make_snapshot,
    open_recorder,
    record_snapshots,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def count_colors(path: Path) -> int:
    """Return the number of colors of an image; a blank image has one."""
    with Image.open(path) as image:
        return len(np.unique(np.array(image.convert("RGB")).reshape(-1, 3), axis=0))


def make_final_artifacts(num_dimensions: int, *, is_labeled: bool = True) -> FinalArtifacts:
    codes = torch.randn(400, num_dimensions, generator=torch.Generator().manual_seed(0))
    return FinalArtifacts({}, codes, torch.arange(400) % 10 if is_labeled else None)


@pytest.mark.parametrize(
    "outcome", [FINISHED_OUTCOME, RunOutcome("stopped", 20), RunOutcome("failed", 20, error="disk full")]
)
def test_curves_and_previews_are_written_for_every_outcome(tmp_path: Path, outcome: RunOutcome) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(MetricsRecorder(), run) as log, open_recorder(FigureRecorder(), run, outcome) as figures:
        for recorder in (log, figures):
            record_snapshots(recorder, run, (0, 10, 20))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"loss.png", "reconstructions.png"}
    assert count_colors(tmp_path / "figures/loss.png") > 20


def test_run_failed_before_its_first_step_writes_no_figures(tmp_path: Path) -> None:
    with open_recorder(FigureRecorder(), make_run_info(tmp_path), RunOutcome("failed", 0, error="no data")):
        pass
    assert list((tmp_path / "figures").iterdir()) == []


def test_newest_preview_is_kept(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(FigureRecorder(interval_seconds=60), run) as figures:
        record_snapshots(figures, run, (0, 10, 20))
    with Image.open(tmp_path / "figures/reconstructions.png") as image:
        assert image.size == (640, 640 + CAPTION_PIXELS)
        np.testing.assert_array_equal(np.array(image)[CAPTION_PIXELS::80, ::80], make_image(20)[0].numpy())


def test_gallery_is_written_as_images_and_animations(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    gallery = {
        "grid": make_image(1, channels=3),
        "walk": torch.stack([make_image(1), make_image(2), make_image(3)]),
    }
    with open_recorder(FigureRecorder(), run) as figures:
        figures.record(make_snapshot(40, run, final_artifacts=FinalArtifacts(gallery)))
    with Image.open(tmp_path / "figures/grid.png") as image:
        pixels = np.array(image)[CAPTION_PIXELS::80, ::80]
    np.testing.assert_array_equal(pixels, gallery["grid"].permute(1, 2, 0).numpy())
    with Image.open(tmp_path / "figures/walk.gif") as gif:
        assert gif.n_frames == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("is_labeled", [True, False])
def test_2d_and_3d_codes_are_plotted(tmp_path: Path, dimensions: int, is_labeled: bool) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(FigureRecorder(), run) as figures:
        figures.record(
            make_snapshot(40, run, final_artifacts=make_final_artifacts(dimensions, is_labeled=is_labeled))
        )
    assert count_colors(tmp_path / "figures/latents.png") > 100
    page = (tmp_path / "figures/latents.html").read_text()
    assert "Plotly.react" in page
    assert '<script src="http' not in page


def test_codes_with_many_dimensions_are_not_plotted(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(FigureRecorder(), run) as figures:
        figures.record(make_snapshot(40, run, final_artifacts=make_final_artifacts(5)))
    assert list((tmp_path / "figures").iterdir()) == []


def test_nonfinite_values_do_not_prevent_figures(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    broken = {"loss": Curve(np.arange(1, 4), np.full(3, np.nan, np.float32))}
    with open_recorder(MetricsRecorder(), run) as log, open_recorder(FigureRecorder(), run):
        log.record(Snapshot(make_clock(3, run), broken, test_metrics={"psnr": float("inf")}))
    assert (tmp_path / "figures/loss.png").is_file()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_browser_renders_the_latent_plot(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(FigureRecorder(), run) as figures:
        figures.record(make_snapshot(40, run, final_artifacts=make_final_artifacts(3)))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"]
    command += ["--window-size=800,600", f"--user-data-dir={tmp_path / 'browser'}"]
    command += [f"--screenshot={tmp_path / 'shown.png'}", (tmp_path / "figures/latents.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    with Image.open(tmp_path / "shown.png") as image:
        plot = np.array(image.convert("RGB"))[150:400, 200:600].astype(int)
    colored = plot.max(axis=-1) - plot.min(axis=-1) > 100
    assert colored.mean() > 0.01
