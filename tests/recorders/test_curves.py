"""Panels and smoothing of curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from genexp.recorders.curves import group_metrics, smooth_curve, write_curves_figure
from genexp.run_dir.metrics import LoggedCurve


def test_losses_share_a_panel() -> None:
    names = ["generator_loss", "discriminator_loss", "real_score", "psnr", "frechet_mnist-v1", "recall_mnist-v1"]
    assert group_metrics(names) == {
        "loss": ["generator_loss", "discriminator_loss"],
        "real_score": ["real_score"],
        "psnr": ["psnr"],
        "frechet_mnist-v1": ["frechet_mnist-v1"],
        "recall_mnist-v1": ["recall_mnist-v1"],
    }


def test_a_smoothed_curve_has_the_epoch_means() -> None:
    steps = np.arange(1, 101)
    column = LoggedCurve(steps, -(-steps // 10), np.arange(100.0))
    column.values[5] = np.nan
    middles, means = smooth_curve(column, steps_per_epoch=10)
    assert len(means) == 10
    assert (middles[1], means[1]) == (15.5, 14.5)
    assert means[0] == pytest.approx(np.nanmean(column.values[:10]))


def make_curve(*values: float) -> LoggedCurve:
    steps = np.arange(1, len(values) + 1)
    return LoggedCurve(steps, steps, np.array(values))


def list_legend_labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return a list to which every figure is added when it is drawn."""
    drawn: list[Figure] = []
    draw = FigureCanvasAgg.draw

    def draw_and_record(canvas: FigureCanvasAgg) -> None:
        drawn.append(canvas.figure)
        draw(canvas)

    monkeypatch.setattr(FigureCanvasAgg, "draw", draw_and_record)
    return drawn


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ((2.0e6, 2.1e6), "2.05M"),
        ((1e-5, 2e-5), "1.5e−05"),
        ((1, 1e-3), "10⁻²"),
        ((1000, 1000.0001), "1000.0"),
        ((0.41, 0.59), "0.50"),
    ],
)
def test_tick_labels_are_complete_numbers_that_fit(
    values: tuple[float, float], label: str, tmp_path: Path, figures: list[Figure]
) -> None:
    write_curves_figure(tmp_path / "f.png", {"train": {"loss": make_curve(*values)}}, "t", 1)
    (axes,) = figures[0].axes
    assert label in [text.get_text() for text in axes.get_yticklabels()]
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert min(text.get_window_extent().x0 for text in axes.get_yticklabels()) > 0


def test_best_value_is_marked_and_single_values_are_text(tmp_path: Path, figures: list[Figure]) -> None:
    metrics = {
        "train": {"loss": make_curve(3, 2, 1)},
        "test": {"loss": make_curve(3, np.nan, 2.5), "psnr": make_curve(1, 9, 4), "frechet": make_curve(7)},
    }
    for direction, best in (("min", "best: 1 at epoch 1"), ("max", "best: 9 at epoch 2")):
        write_curves_figure(tmp_path / "f.png", metrics, "t", 1, objective="psnr", direction=direction)
        loss_panel, psnr_panel = figures[-1].axes
        assert list_legend_labels(loss_panel) == ["train", "test"]
        assert list_legend_labels(psnr_panel) == ["test", best]
        assert [panel.get_title("left") for panel in figures[-1].axes] == ["loss", "psnr"]
        assert [text.get_text() for text in figures[-1].texts] == ["t", "Measured once: frechet 7 (test)."]


def test_figure_without_a_curve_has_the_values(tmp_path: Path) -> None:
    write_curves_figure(tmp_path / "f.png", {"test": {"frechet": make_curve(7)}}, "t", 1)
    with Image.open(tmp_path / "f.png") as image:
        assert image.width > 300
