"""Panels and smoothing of curves."""

from __future__ import annotations

import numpy as np
import pytest

from genexp.recorders.curves import group_metrics, smooth_curve
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
