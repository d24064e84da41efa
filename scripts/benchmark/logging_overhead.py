"""Cost of recording: the pauses between training steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmark.clock import read_seconds
from benchmark.compose import compose_config
from benchmark.paired_rounds import PairedComparison, compare
from benchmark.step_timer import StepTimer, time_run
from genexp.runs.build import Run
from genexp.seeding import seed_generators
from genexp.snapshot import Snapshot
from genexp.training.trainer import eval_mode

CHECKPOINT_SPACING_SECONDS = 30.0  # default of trainer.checkpoint_spacing
EVALUATION_OVERRIDES = ("trainer.evaluate_every=1", "trainer.preview_every=1")
NO_EVALUATION_OVERRIDES = ("trainer.evaluate_every=0", "trainer.preview_every=0")


@dataclass(frozen=True)
class LoggingTask:
    """A model and the length of its training in one round."""

    model: str
    steps: int
    dataset_limit: int  # dataset.limit of the runs that record at epoch ends; small, so that many epochs end


TASKS = (
    LoggingTask("stacked_autoencoder", 2000, 2000),
    LoggingTask("vae", 1000, 2000),
    LoggingTask("conv_autoencoder", 300, 1000),
    LoggingTask("dcgan", 60, 512),
)


def run(rounds: int, tasks: tuple[LoggingTask, ...] = TASKS) -> list[PairedComparison]:
    """Measure the cost of recording. Raises AssertionError if recording changes the training metrics."""
    rows = []
    for task in tasks:
        _check_unchanged(task)
        short_epochs = (f"dataset.limit={task.dataset_limit}", f"trainer.max_steps={task.steps // 2}")
        plain_timers = [_time_task(task, *NO_EVALUATION_OVERRIDES) for _ in range(rounds)]
        checkpoint_timers = [
            _time_task(task, *NO_EVALUATION_OVERRIDES, *short_epochs, "trainer.checkpoint_spacing=0")
            for _ in range(rounds)
        ]
        evaluation_timers = [_time_task(task, *EVALUATION_OVERRIDES, *short_epochs) for _ in range(rounds)]
        training_seconds = [timer.seconds - sum(seconds for seconds, _ in timer.pauses) for timer in plain_timers]
        checkpoint_speeds = [
            1
            / (
                1
                + _mean_pause(timer, lambda snapshot: snapshot.checkpoint_state is not None)
                / CHECKPOINT_SPACING_SECONDS
            )
            for timer in checkpoint_timers
        ]
        recorded_seconds = [
            _mean_pause(timer, lambda snapshot: bool(snapshot.test_metrics)) for timer in evaluation_timers
        ]
        computed_seconds = [_measure_evaluation_seconds(watch.run) for watch in evaluation_timers]
        rows += [
            compare(
                f"{task.model}, every step recorded",
                "nothing recorded",
                [task.steps / watch.seconds for watch in plain_timers],
                [task.steps / seconds for seconds in training_seconds],
                unit="steps/s",
            ),
            compare(
                f"{task.model}, a checkpoint every {CHECKPOINT_SPACING_SECONDS:.0f} s",
                "none",
                checkpoint_speeds,
                [1.0] * rounds,
                unit="speed",
            ),
            compare(
                f"{task.model}, a look recorded",
                "its computation alone",
                recorded_seconds,
                computed_seconds,
                unit="s",
            ),
        ]
    return rows


def _time_task(task: LoggingTask, *overrides: str) -> StepTimer:
    task_overrides = (f"model={task.model}", "dataset=mnist_5k", "device=cpu", f"trainer.max_steps={task.steps}")
    return time_run(compose_config(*task_overrides, *overrides))


def _mean_pause(timer: StepTimer, is_counted: Callable[[Snapshot], bool]) -> float:
    return statistics.mean(
        seconds for seconds, snapshot in timer.pauses if snapshot is not None and is_counted(snapshot)
    )


def _measure_evaluation_seconds(run: Run, *, repeats: int = 3) -> float:
    """Return the mean seconds of one evaluation and one preview without recording."""
    learner, data = run.learner, run.data
    started_at = read_seconds()
    for _ in range(repeats):
        seed_generators(learner.device, run.config.seed, "look")
        with eval_mode(learner.eval_technique):
            learner.eval_technique.evaluate(data.test_batches)
            learner.eval_technique.preview(data.examples)
    return (read_seconds() - started_at) / repeats


def _check_unchanged(task: LoggingTask) -> None:
    """Check that training metrics are equal with frequent and with minimal recording. Raises AssertionError."""
    short = ("dataset.limit=256", "trainer.max_steps=20")
    recorded = _join_curves(_time_task(task, *EVALUATION_OVERRIDES, *short, "trainer.checkpoint_spacing=0"))
    unrecorded = _join_curves(_time_task(task, *NO_EVALUATION_OVERRIDES, *short, "trainer.checkpoint_every=0"))
    for name, curve in recorded.items():
        assert np.array_equal(curve, unrecorded[name]), f"{task.model}: records change the {name}"


def _join_curves(timer: StepTimer) -> dict[str, np.ndarray]:
    names = timer.snapshots[-1].train_curves
    return {
        name: np.concatenate(
            [snapshot.train_curves[name].values for snapshot in timer.snapshots if snapshot.train_curves]
        )
        for name in names
    }
