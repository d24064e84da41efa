"""Epoch means of training metrics."""

from __future__ import annotations

import numpy as np
import pytest

from genexp.recorders.step_rows import EpochMeans
from tests.support.snapshots import (
    make_curves,
    synthetic_loss,
)


def test_epoch_means_do_not_depend_on_block_sizes() -> None:
    whole, parts = EpochMeans(10), EpochMeans(10)
    together = whole.add(make_curves(1, 20))
    assert parts.add(make_curves(1, 7)) is None
    assert parts.add(make_curves(8, 13)) is not None
    apart = parts.add(make_curves(14, 20))
    assert together is not None
    assert apart is not None
    assert together[0] == apart[0] == 2
    assert apart[1] == pytest.approx(together[1])
    assert apart[1]["loss"] == pytest.approx(np.mean([synthetic_loss(step) for step in range(11, 21)]))


def test_mean_of_a_partly_recorded_epoch_uses_the_recorded_steps() -> None:
    means = EpochMeans(10)
    assert means.add(make_curves(21, 25)) is None
    assert means.compute_means()["loss"] == pytest.approx(
        np.mean([synthetic_loss(step) for step in range(21, 26)])
    )


def test_epochs_of_one_step_end_with_every_step() -> None:
    completed_epoch = EpochMeans(1).add(make_curves(1, 5))
    assert completed_epoch is not None
    assert completed_epoch[0] == 5
    assert completed_epoch[1]["loss"] == pytest.approx(synthetic_loss(5))
