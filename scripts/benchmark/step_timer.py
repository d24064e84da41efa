"""A training run under a stopwatch: how long its steps take, and the pauses between them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmark.clock import now
from genexp.device import flush_denormals
from genexp.runs.build import Run, build_run
from genexp.runs.run import describe_run, run_recorders
from genexp.snapshot import Outcome, Snapshot
from genexp.technique import Batch, Metrics
from genexp.training.stopping import StopRequest
from genexp.training.trainer import train


class Watch:
    """Stands between the trainer and a run's learner, feed and recorders, and notes when they are called.

    The last step has no pause behind it: the pictures of the end are not the loop's work.
    """

    def __init__(self, built: Run, listener: Any) -> None:
        self.built, self._listener = built, listener
        self.seconds = 0.0  # from the request for the first batch to the end of the last step
        self.pauses: list[tuple[float, Snapshot | None]] = []  # seconds, and what was recorded in them
        self.snapshots: list[Snapshot] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.built.learner, name)

    @property
    def steps_per_epoch(self) -> int:
        return self.built.material.feed.steps_per_epoch

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield batches. The next one is asked for when all is recorded."""
        self._begun = now()
        for batch in self.built.material.feed.batches(first_step):
            recorded = len(self.snapshots)
            yield batch
            snapshot = self.snapshots[-1] if len(self.snapshots) > recorded else None
            self.pauses.append((now() - self._stepped, snapshot))

    def step(self, *arguments: Any) -> Metrics:
        """Do a step."""
        metrics = self.built.learner.step(*arguments)
        self._stepped = now()
        self.seconds = self._stepped - self._begun
        return metrics

    def record(self, snapshot: Snapshot) -> None:
        """Record a snapshot."""
        self._listener.record(snapshot)
        self.snapshots.append(snapshot)


def watched(config: Mapping[str, Any]) -> Watch:
    """Run what a plain, resolved configuration says, with all that a run records, in a folder that goes again."""
    flush_denormals()
    built = build_run(config, None)
    recorders = run_recorders(built.trainer, None)
    watch: Any = Watch(built, recorders)
    material = replace(built.material, feed=watch)
    with tempfile.TemporaryDirectory() as name:
        OmegaConf.save(OmegaConf.create(dict(config)), Path(name) / "config.yaml")
        recorders.open(describe_run(built, config, Path(name), 0))
        clock = train(watch, material, watch, built.trainer, StopRequest(), seed=built.seed)
        recorders.close(Outcome("finished" if clock.ends else "stopped", clock.step))
    built.material.feed.close()
    return watch
