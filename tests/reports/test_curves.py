"""Downsampling and resampling of curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genexp.reports.comparison import compare
from genexp.reports.curves import (
    Chart,
    build_run_charts,
    build_sweep_charts,
    downsample_min_max,
    resample_to_grid,
)
from genexp.reports.run_report import write_run_report
from genexp.run_dir.metrics import LoggedCurve
from tests.support.run_dirs import make_run_dir


def test_downsample_min_max_keeps_every_peak() -> None:
    values = np.zeros(100_000)
    values[[31_234, 77_777]] = 5, -5
    values[500:900] = np.nan
    steps = np.arange(1, 100_001)
    kept, heights = downsample_min_max(LoggedCurve(steps, steps, values), 1000)
    assert len(kept) <= 1000
    assert (np.nanmax(heights), np.nanmin(heights)) == (5, -5)
    assert {31_235, 77_778} <= set(kept.tolist())
    assert np.all(np.diff(kept) > 0)
    assert np.isnan(heights).any()


def test_runs_of_different_lengths_are_resampled_to_one_grid() -> None:
    short, long = (LoggedCurve(np.arange(1, n + 1), np.ones(n), np.full(n, float(n))) for n in (10, 1000))
    steps, values = resample_to_grid([short, long], 50)
    assert values.shape == (2, 50) == (2, len(steps))
    assert np.isfinite(values[1]).all()
    assert np.isfinite(values[0]).sum() == 1
    steps, values = resample_to_grid([short, short], 50)
    assert steps.tolist() == list(range(1, 11))


def make_noisy_curve(offset: float) -> LoggedCurve:
    """Return 500 steps around `offset`, of which every fiftieth is an outlier."""
    steps = np.arange(1, 501)
    values = offset + np.sin(steps)
    values[::50] = offset + 1000
    return LoggedCurve(steps, 1 + (steps - 1) // 50, values)


def read_y_range(charts: list[Chart]) -> tuple[float, float]:
    low, high = charts[0]["layout"]["yaxis"]["range"]
    return low, high


def test_y_axis_contains_nine_tenths_of_the_steps_but_no_outlier() -> None:
    curve = make_noisy_curve(0.0)
    low, high = read_y_range(build_run_charts({"train": {"loss": curve}}))
    assert ((curve.values > low) & (curve.values < high)).mean() >= 0.9
    # The smoothed curve, whose values are 20, lies within the axis. It would be invisible if 1000 did.
    assert 20 < high < 30
    low, high = read_y_range(
        build_run_charts({"train": {"loss": curve}, "test": {"loss": make_noisy_curve(900.0)}})
    )
    assert 10**high > 1900, "all test values are shown, on a logarithmic axis"


def test_y_axis_of_noisy_runs_of_a_sweep_contains_no_outlier(tmp_path: Path) -> None:
    comparison = compare([make_run_dir(tmp_path / "run")])
    metrics = {run: {"train": {"loss": make_noisy_curve(0.0)}} for run in comparison.runs}
    low, high = read_y_range(build_sweep_charts(comparison, metrics))
    assert low < -1
    assert 20 < high < 300


def test_charts_and_comparisons_find_an_objective_with_a_version(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run_dir(
            tmp_path / str(seed),
            {"frechet_mnist-v1": 50.0 - seed, "recall_mnist-v1": 0.5},
            overrides={"seed": seed, "trainer.objective": "frechet"},
            objective="frechet_mnist-v1",
        )
    comparison = compare([tmp_path])
    assert comparison.objective is not None
    assert comparison.objective.metric == "frechet_mnist-v1"
    assert [run.seed for run in comparison.runs] == [1, 0]
    page = write_run_report(tmp_path / "0")
    assert "<td>frechet_mnist-v1</td><td>test, objective</td>" in page.read_text()


def test_settings_that_follow_another_one_are_not_columns(tmp_path: Path) -> None:
    def compare_rates(name: str, *rates: tuple[float, float]) -> tuple[str, ...]:
        for number, (rate, generator_rate) in enumerate(rates):
            overrides = {"optimizer.lr": rate, "optimizer.generator": {"lr": generator_rate}}
            make_run_dir(tmp_path / name / str(number), overrides=overrides)
        return compare([tmp_path / name]).differing_keys

    assert compare_rates("equal", (0.1, 0.1), (0.2, 0.2)) == ("optimizer.lr",)
    assert set(compare_rates("other", (0.1, 0.1), (0.2, 0.3))) == {"optimizer.lr", "optimizer.generator.lr"}
    assert compare_rates("one", (0.1, 0.1), (0.1, 0.3)) == ("optimizer.generator.lr",)
