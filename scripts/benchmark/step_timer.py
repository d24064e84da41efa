"""Timer of a training run: duration of its steps, and of the pauses between them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmark.clock import read_seconds
from genexp.device import flush_denormals
from genexp.runs.build import Run, build_run
from genexp.runs.config import bind_experiment
from genexp.runs.run import build_recorders, build_run_info
from genexp.snapshot import RunOutcome, Snapshot
from genexp.technique import Batch, Metrics
from genexp.training.stopping import StopRequest
from genexp.training.trainer import train


class StepTimer:
    """Proxy of a run's learner, batch source and recorders that records when the trainer calls them.

    The pause after the last step is excluded: final artifacts are not part of the loop.
    """

    def __init__(self, run: Run, recorders: Any) -> None:
        self.run, self._recorders = run, recorders
        self.seconds = 0.0  # from the request for the first batch to the end of the last step
        self.pauses: list[tuple[float, Snapshot | None]] = []  # seconds, and the snapshot recorded in them
        self.snapshots: list[Snapshot] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run.learner, name)

    @property
    def steps_per_epoch(self) -> int:
        return self.run.data.batch_source.steps_per_epoch

    def iter_batches(self, first_step: int) -> Iterator[Batch]:
        """Yield batches, stream name → (batch, ...). The trainer requests one after it has recorded a snapshot."""
        self._started_at = read_seconds()
        for batch in self.run.data.batch_source.iter_batches(first_step):
            snapshot_count = len(self.snapshots)
            yield batch
            snapshot = self.snapshots[-1] if len(self.snapshots) > snapshot_count else None
            self.pauses.append((read_seconds() - self._step_ended_at, snapshot))

    def step(self, *arguments: Any) -> Metrics:
        """Run one step of the learner and return its metrics."""
        metrics = self.run.learner.step(*arguments)
        self._step_ended_at = read_seconds()
        self.seconds = self._step_ended_at - self._started_at
        return metrics

    def record(self, snapshot: Snapshot) -> None:
        """Record a snapshot and keep it."""
        self._recorders.record(snapshot)
        self.snapshots.append(snapshot)


def time_run(config: Mapping[str, Any]) -> StepTimer:
    """Train a plain, resolved configuration with all recorders, in a temporary directory. Return its timer."""
    flush_denormals()
    run = build_run(bind_experiment(config), None)
    recorders = build_recorders(run.config)
    timer: Any = StepTimer(run, recorders)
    data = replace(run.data, batch_source=timer)
    with tempfile.TemporaryDirectory() as run_dir:
        OmegaConf.save(OmegaConf.create(dict(config)), Path(run_dir) / "config.yaml")
        recorders.open(build_run_info(run, Path(run_dir), 0))
        result = train(timer, data, timer, run.config.trainer, StopRequest(), seed=run.config.seed)
        recorders.close(RunOutcome("finished" if result.is_finished else "stopped", result.clock.step))
    run.data.batch_source.close()
    return timer
