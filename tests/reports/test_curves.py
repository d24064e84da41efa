"""Downsampling and resampling of curves."""

from __future__ import annotations

import numpy as np

from genexp.reports.curves import downsample_min_max, resample_to_grid
from genexp.run_dir.metrics import LoggedCurve


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
