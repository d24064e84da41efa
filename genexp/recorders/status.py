"""Recorder of `status.json`, a summary of the run that is replaced atomically."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import final

from genexp.errors import DataError
from genexp.recorders.recorder import Recorder
from genexp.run_dir.files import sync_files, sync_tree
from genexp.run_dir.paths import STATUS_FILE
from genexp.run_dir.status import (
    BestScore,
    RunStatus,
    format_utc_now,
    read_status,
    release_status_space,
    reserve_status_space,
    write_status,
)
from genexp.snapshot import RunInfo, RunOutcome, RunProgress, Snapshot


@final
class StatusRecorder(Recorder):
    """Recorder of `status.json`.

    The file is written at the start, at most every `interval_seconds` seconds during the run, and at the end.
    "finished" is written last, when all files of the run are complete and on the disk. A resumed run takes its
    scores and warnings from the checkpoint, and its times from the previous file.
    """

    def __init__(self, interval_seconds: float = 1.0, read_time: Callable[[], float] = time.monotonic) -> None:
        self._interval_seconds, self._read_time = interval_seconds, read_time

    def open(self, run: RunInfo) -> None:
        """Write the initial status."""
        self._run_dir = run.run_dir
        self._open_time, self._open_cpu_time = time.monotonic(), time.process_time()
        self._previous = self._read_previous_status(run)
        self._status = RunStatus(
            "running",
            model=run.model_name,
            dataset=run.dataset_name,
            step=run.completed_steps,
            total_steps=run.total_steps,
            epoch=-(-run.completed_steps // run.steps_per_epoch),
            objective=run.objective,
            started=self._previous.started or format_utc_now(),
            environment=dict(run.environment),
            data=dict(run.data_fingerprints),
        )
        self._set_progress(run.progress)
        self._write()
        reserve_status_space(self._run_dir)

    def record(self, snapshot: Snapshot) -> None:
        """Update the status, and write it if it is due."""
        self._status = replace(self._status, step=snapshot.clock.step, epoch=snapshot.clock.epoch)
        self._set_progress(snapshot.progress)
        if self._read_time() - self._last_write_time >= self._interval_seconds:
            self._write()

    def flush(self) -> None:
        """Flush the file to the disk: a checkpoint, which is flushed with its folder, follows."""
        sync_files([self._run_dir / STATUS_FILE])

    def close(self, outcome: RunOutcome) -> None:
        """Write the final step and error for the report. A finished run is still "running"."""
        state = "running" if outcome.state == "finished" else outcome.state
        self._status = replace(self._status, state=state, step=outcome.step, error=outcome.error)
        self._write(should_sync=outcome.state != "finished")  # `confirm` flushes a finished run

    def confirm(self, outcome: RunOutcome) -> None:
        """Write the final state, unless `close` has written it."""
        if outcome.state == "finished":
            release_status_space(self._run_dir)  # before the last write: a finished run is not opened again
            sync_tree(self._run_dir)
        if self._status.state != outcome.state:
            self._status = replace(self._status, state=outcome.state, error=outcome.error)
            self._write(should_sync=True)
        release_status_space(self._run_dir)

    def _set_progress(self, progress: RunProgress) -> None:
        best = None
        if progress.best_value is not None and progress.best_step is not None:
            best = BestScore(progress.best_value, progress.best_step)
        self._status = replace(
            self._status,
            train=progress.train_means,
            test=progress.test_metrics,
            best=best,
            warnings=progress.warnings,
        )

    def _read_previous_status(self, run: RunInfo) -> RunStatus:
        """Return the status before the resumption; an empty one if there is none or it is damaged."""
        try:
            return (read_status(run.run_dir) if run.completed_steps else None) or RunStatus("waiting")
        except DataError:
            return RunStatus("waiting")

    def _write(self, *, should_sync: bool = False) -> None:
        self._last_write_time = self._read_time()
        seconds = (self._previous.seconds or 0.0) + time.monotonic() - self._open_time
        cpu_seconds = (self._previous.cpu_seconds or 0.0) + time.process_time() - self._open_cpu_time
        self._status = replace(self._status, seconds=round(seconds, 3), cpu_seconds=round(cpu_seconds, 3))
        write_status(self._run_dir, self._status, should_sync=should_sync)
