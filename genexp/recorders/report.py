"""Recorder that writes the HTML report of a run once, when it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

from genexp.recorders.recorder import Recorder
from genexp.snapshot import RunInfo, RunOutcome, Snapshot


@final
class ReportRecorder(Recorder):
    """Recorder of `report.html`. It reads files of other recorders and must be closed after them.

    `write_report` takes the run directory and the state of the run. It is a parameter, so that recorders do not
    import `genexp.reports`.
    """

    def __init__(self, write_report: Callable[[Path, str], object]) -> None:
        self._write_report = write_report

    def open(self, run: RunInfo) -> None:
        """Store the run directory."""
        self._run_dir = run.run_dir

    def record(self, snapshot: Snapshot) -> None:
        """Do nothing: the page is written when the run ends."""

    def close(self, outcome: RunOutcome) -> None:
        """Write the page, also for a failed run."""
        self._write_report(self._run_dir, outcome.state)
