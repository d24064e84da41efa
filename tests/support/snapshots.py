"""Synthetic runs and snapshots for recorders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from genexp.recorders.recorder import Recorder
from genexp.run_dir.checkpoint import measure_logs
from genexp.snapshot import Curve, RunInfo, RunOutcome, Snapshot
from genexp.technique import Clock
from genexp.training.progress import ProgressTracker

RecorderT = TypeVar("RecorderT", bound=Recorder)
FINISHED_OUTCOME = RunOutcome("finished", 40)


def make_run_info(run_dir: Path, **changes: Any) -> RunInfo:
    """Return a run of 40 steps in 4 epochs."""
    run_dir.mkdir(parents=True, exist_ok=True)
    run = RunInfo(
        run_dir=run_dir,
        model_name="vae",
        dataset_name="digits",
        config={"seed": 0, "model": {"name": "vae", "beta": 1.0, "widths": [64, 32], "note": None}},
        total_steps=40,
        steps_per_epoch=10,
        batch_size=32,
        num_parameters=12_345,
        objective="psnr",
        direction="max",
        class_names=tuple("0123456789"),
        environment={"device": "cpu (2 threads)"},
    )
    return replace(run, **changes)


def make_clock(step: int, run: RunInfo) -> Clock:
    """Return the clock of `run` at `step`."""
    return Clock(step, run.total_steps, run.steps_per_epoch)


def synthetic_loss(step: int) -> float:
    """Return a decreasing loss, rounded to float32."""
    return float(np.float32(math.exp(-step / 20) + 0.05 * math.sin(step)))


def make_curves(first: int, last: int, names: Iterable[str] = ("loss", "kl")) -> dict[str, Curve]:
    """Return a curve for each name over the steps `first` to `last`."""
    steps = np.arange(first, last + 1)
    values = np.array([synthetic_loss(step) for step in range(first, last + 1)], np.float32)
    return {name: Curve(steps, values / (1 + rank)) for rank, name in enumerate(names)}


def make_image(step: int, size: tuple[int, int] = (8, 8), channels: int = 1) -> Tensor:
    """Return a random uint8 image that differs between steps."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (channels, *size), generator=generator, dtype=torch.uint8)


class SnapshotMaker:
    """Maker of the consecutive snapshots of a run, whose progress it tracks like the loop."""

    def __init__(self, run: RunInfo) -> None:
        self._run = run
        self._tracker = ProgressTracker(
            run.objective, run.direction, run.steps_per_epoch, run.completed_steps, run.progress
        )

    def make(self, step: int, *, block_steps: int = 10, warnings: tuple[str, ...] = (), **fields: Any) -> Snapshot:
        """Return the snapshot at `step` with the training metrics of the last `block_steps` steps."""
        curves: Mapping[str, Curve] = make_curves(step - block_steps + 1, step) if step else {}
        fields = {"train_curves": curves, **fields}
        epoch_means = self._tracker.add_curves(fields["train_curves"], step)
        if fields.get("test_metrics"):
            self._tracker.add_scores(fields["test_metrics"], step)
        self._tracker.add_warnings(warnings)
        means = epoch_means[-1] if epoch_means else {}
        return Snapshot(make_clock(step, self._run), progress=self._tracker.progress, epoch_means=means, **fields)


def make_snapshot(step: int, run: RunInfo, **fields: Any) -> Snapshot:
    """Return the first snapshot of a run, at `step`, from the arguments of `SnapshotMaker.make`."""
    return SnapshotMaker(run).make(step, **fields)


@contextmanager
def open_recorder(
    recorder: RecorderT, run: RunInfo, outcome: RunOutcome = FINISHED_OUTCOME
) -> Iterator[RecorderT]:
    """Open a recorder, and close it at the end of the block."""
    recorder.open(run)
    try:
        yield recorder
    finally:
        recorder.close(outcome)


def record_snapshots(recorder: Recorder, run: RunInfo, steps: Iterable[int]) -> None:
    """Record a snapshot with test metrics and a preview at each of `steps`."""
    for step in steps:
        fields: dict[str, Any] = {"preview_images": {"reconstructions": make_image(step)}}
        if step:
            fields["test_metrics"] = {"psnr": 10 + step / 10}
        recorder.record(make_snapshot(step, run, **fields))


def flush_and_measure_logs(recorder: Recorder, run: RunInfo) -> dict[str, int]:
    """Flush a recorder and return the sizes of the logs, as a checkpoint stores them."""
    recorder.flush()
    return measure_logs(run.run_dir)
