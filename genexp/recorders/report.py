"""Recorder that writes the HTML report of a run, while it runs and when it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import final

from genexp.recorders.recorder import Recorder
from genexp.snapshot import RunInfo, RunOutcome, Snapshot

log = logging.getLogger(__name__)
MAX_SHARE = 0.02  # of the time of a run, for the pages that are written while it runs


@final
class ReportRecorder(Recorder):
    """Recorder of `report.html`. It reads files of other recorders and must be closed after them.

    `write_report` takes the run directory and the state of the run. It is a parameter, so that recorders do not
    import `genexp.reports`. During the run, it is called at each evaluation and every `interval_seconds` seconds,
    unless this took more than MAX_SHARE of the time.
    """

    def __init__(
        self,
        write_report: Callable[[Path, str], object],
        interval_seconds: float = 30.0,
        read_time: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write_report, self._interval_seconds, self._read_time = write_report, interval_seconds, read_time

    def open(self, run: RunInfo) -> None:
        """Store the run directory."""
        self._run_dir = run.run_dir
        self._last_time, self._pause = self._read_time(), 2.0  # the first page takes longest

    def record(self, snapshot: Snapshot) -> None:
        """Write the page if it is due. An error does not end the run."""
        start = self._read_time()
        waited = start - self._last_time
        if waited < self._pause or not (snapshot.test_metrics or waited >= self._interval_seconds):
            return
        try:
            self._write_report(self._run_dir, "running")
        except Exception as error:
            log.warning("report.html is not updated: %s", error)
        self._last_time = self._read_time()
        self._pause = (self._last_time - start) / MAX_SHARE

    def close(self, outcome: RunOutcome) -> None:
        """Write the page, also for a failed run."""
        self._write_report(self._run_dir, outcome.state)
