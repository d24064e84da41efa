"""Record of a run's scores, epoch means and warnings, independent of interruptions and blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from genexp.snapshot import RunProgress
from genexp.training.progress import ProgressTracker
from tests.support.snapshots import make_curves, synthetic_loss


def make_tracker(direction: str = "min", steps_per_epoch: int = 10) -> ProgressTracker:
    return ProgressTracker("mse", direction, steps_per_epoch, 0, RunProgress())


def test_epoch_means_do_not_depend_on_block_sizes_or_interruptions() -> None:
    whole, parts = make_tracker(), make_tracker()
    first, second = whole.add_curves(make_curves(1, 20), 20)
    assert parts.add_curves(make_curves(1, 7), 7) == []
    resumed = ProgressTracker("mse", "min", 10, 7, parts.progress)
    assert resumed.add_curves(make_curves(8, 13), 13) == [first]
    assert resumed.add_curves(make_curves(14, 20), 20) == [second]
    assert resumed.progress == whole.progress
    assert second["loss"] == pytest.approx(np.mean([synthetic_loss(step) for step in range(11, 21)]))


def test_mean_of_an_unfinished_epoch_uses_its_steps_so_far() -> None:
    tracker = make_tracker()
    tracker.add_curves(make_curves(1, 15), 15)
    expected = np.mean([synthetic_loss(step) for step in range(11, 16)])
    assert tracker.progress.train_means["loss"] == pytest.approx(expected)


def test_epochs_of_one_step_end_with_every_step() -> None:
    means = make_tracker(steps_per_epoch=1).add_curves(make_curves(1, 5), 5)
    assert [mean["loss"] for mean in means] == pytest.approx([synthetic_loss(step) for step in range(1, 6)])


@pytest.mark.parametrize(("direction", "best_value", "best_step"), [("min", 1.0, 20), ("max", 3.0, 10)])
def test_best_score_is_the_first_best_finite_one(direction: str, best_value: float, best_step: int) -> None:
    tracker = make_tracker(direction)
    for count, value in enumerate((3.0, 1.0, 1.0, 3.0, math.nan, -math.inf, math.inf), start=1):
        tracker.add_scores({"mse": value}, 10 * count)
    assert (tracker.progress.best_value, tracker.progress.best_step) == (best_value, best_step)
    assert tracker.progress.test_metrics == {"mse": math.inf}


def test_a_repeated_warning_is_kept_once() -> None:
    tracker = make_tracker()
    tracker.add_warnings(("collapse",))
    tracker.add_warnings(("blow-up", "collapse"))
    assert tracker.progress.warnings == ("collapse", "blow-up")


@pytest.mark.parametrize(("direction", "sign"), [("min", 1), ("max", -1)])
def test_small_improvements_leave_the_reference_of_early_stopping(direction: str, sign: int) -> None:
    tracker = ProgressTracker("mse", direction, 10, 0, RunProgress(), min_improvement=0.1)
    for step, value in ((10, 1.0), (20, 0.95), (30, 0.91), (40, math.nan), (50, 0.85), (60, 0.9)):
        tracker.add_scores({"mse": sign * value}, step)
    assert (tracker.progress.reference_value, tracker.progress.reference_step) == (sign * 0.85, 50)
    assert tracker.progress.best_step == 50
