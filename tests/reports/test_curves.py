"""Curves of pages: downsampling, resampling, steps per epoch, and ranges of the y axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genexp.reports.comparison import compare
from genexp.reports.curves import (
    Chart,
    build_run_charts,
    build_sweep_charts,
    downsample_min_max,
    estimate_steps_per_epoch,
    resample_to_grid,
)
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


def test_mean_over_seeds_does_not_jump_where_one_has_converged(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run_dir(tmp_path / str(seed), overrides={"seed": seed})
    comparison = compare([tmp_path])
    values = {"0": [4.0, 2.0], "1": [4.0] * 4}
    steps = np.arange(1, 5)
    curves = {name: LoggedCurve(steps[: len(y)], steps[: len(y)], np.array(y)) for name, y in values.items()}
    metrics = {run: {"test": {"mse": curves[run.run_dir.name]}} for run in comparison.runs}
    (chart,) = build_sweep_charts(comparison, metrics)
    (mean,) = [trace for trace in chart["traces"] if "fill" not in trace and trace["line"]["width"]]
    assert mean["y"] == [4.0, 3.0, 3.0, 3.0]


def test_a_run_of_a_sweep_without_finite_values_has_no_curve(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        make_run_dir(tmp_path / str(rate), overrides={"optimizer.lr": rate})
    comparison = compare([tmp_path])
    steps = np.arange(1, 11)
    values = (steps / 10, np.full(10, np.nan))
    metrics = {
        run: {"train": {"loss": LoggedCurve(steps, steps, losses)}}
        for run, losses in zip(comparison.runs, values, strict=True)
    }
    (chart,) = build_sweep_charts(comparison, metrics)
    assert sorted(len(trace["x"]) for trace in chart["traces"]) == [0, 10]
    low, high = chart["layout"]["yaxis"]["range"]
    assert low < 0.1
    assert 1 < high < 1.2


def test_steps_per_epoch_are_those_of_the_last_step() -> None:
    one, ten = np.array([1]), np.arange(1, 11)
    curves = {"loss": LoggedCurve(ten, 1 + (ten - 1) // 5, ten * 1.0), "once": LoggedCurve(one, one, one * 1.0)}
    assert estimate_steps_per_epoch({"train": curves, "test": {}}) == 5
    assert estimate_steps_per_epoch({"test": {"loss": LoggedCurve(ten, 0 * ten, ten * 1.0)}}) == 10
    assert estimate_steps_per_epoch({}) == 1
