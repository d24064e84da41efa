"""Recorder of `status.json`, a summary of the run that is replaced atomically."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import final

from genexp.errors import DataError
from genexp.recorders.recorder import Recorder
from genexp.run_dir.status import BestScore, RunStatus, format_utc_now, read_status, write_status
from genexp.snapshot import RunInfo, RunOutcome, Snapshot


@final
class StatusRecorder(Recorder):
    """Recorder of `status.json`.

    The file is written at the start, at most every `interval_seconds` seconds during the run, and at the end.
    """

    def __init__(self, interval_seconds: float = 1.0) -> None:
        self._interval_seconds = interval_seconds

    def open(self, run: RunInfo) -> None:
        """Write the initial status. A resumed run keeps its metrics, best value, warnings and run time."""
        self._run_dir, self._pick_better = run.run_dir, {"min": min, "max": max}[run.direction]
        self._open_time, self._open_cpu_time = time.monotonic(), time.process_time()
        previous = self._read_previous_status(run)
        self._previous_seconds, self._previous_cpu_seconds = previous.seconds or 0.0, previous.cpu_seconds or 0.0
        self._status = RunStatus(
            "running",
            model=run.model_name,
            dataset=run.dataset_name,
            step=run.completed_steps,
            total_steps=run.total_steps,
            epoch=-(-run.completed_steps // run.steps_per_epoch),
            test=previous.test,
            objective=run.objective,
            best=previous.best if previous.best and previous.best.step <= run.completed_steps else None,
            warnings=previous.warnings,
            started=previous.started or format_utc_now(),
            environment=dict(run.environment),
            data=dict(run.data_fingerprints),
        )
        self._write()

    def record(self, snapshot: Snapshot) -> None:
        """Update the status. Write it if `interval_seconds` seconds have passed since the last write."""
        status, clock = self._status, snapshot.clock
        last_values = {name: float(curve.values[-1]) for name, curve in snapshot.train_curves.items()}
        self._status = replace(
            status,
            step=clock.step,
            epoch=clock.epoch,
            train={**status.train, **last_values},
            test=dict(snapshot.test_metrics) or status.test,
            best=self._find_best(snapshot),
            warnings=tuple(dict.fromkeys((*status.warnings, *snapshot.warnings))),
        )
        if time.monotonic() - self._last_write_time >= self._interval_seconds:
            self._write()

    def close(self, outcome: RunOutcome) -> None:
        """Write the final state, step and error."""
        self._status = replace(self._status, state=outcome.state, step=outcome.step, error=outcome.error)
        self._write()

    def _read_previous_status(self, run: RunInfo) -> RunStatus:
        """Return the status before the resumption; an empty one if there is none or it is damaged."""
        try:
            return (read_status(run.run_dir) if run.completed_steps else None) or RunStatus("waiting")
        except DataError:
            return RunStatus("waiting")

    def _find_best(self, snapshot: Snapshot) -> BestScore | None:
        value, best = snapshot.test_metrics.get(self._status.objective, math.nan), self._status.best
        if math.isfinite(value) and (best is None or self._pick_better(value, best.value) != best.value):
            return BestScore(value, snapshot.clock.step)
        return best

    def _write(self) -> None:
        self._last_write_time = time.monotonic()
        seconds = round(self._previous_seconds + self._last_write_time - self._open_time, 3)
        cpu_seconds = round(self._previous_cpu_seconds + time.process_time() - self._open_cpu_time, 3)
        self._status = replace(self._status, seconds=seconds, cpu_seconds=cpu_seconds)
        write_status(self._run_dir, self._status)
