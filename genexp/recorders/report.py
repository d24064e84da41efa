"""The page of a run, written once when it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

from genexp.recorders.recorder import Recorder
from genexp.snapshot import RunInfo, RunOutcome, Snapshot


@final
class Report(Recorder):
    """Writes `report.html` from the files of the other recorders, so it is to be closed after them.

    `write` makes the page of a folder: what a page shows is no matter of recording.
    """

    def __init__(self, write_report: Callable[[Path], Path]) -> None:
        self._write_report = write_report

    def open(self, run: RunInfo) -> None:
        """Note where the run is."""
        self._run_dir = run.run_dir

    def record(self, snapshot: Snapshot) -> None:
        """Do nothing: a page is for what is over."""

    def close(self, outcome: RunOutcome) -> None:
        """Write the page, however the run ended."""
        self._write_report(self._run_dir)
