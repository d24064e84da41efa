"""Progress display of a sweep, read from the status files of its jobs, independent of where they run."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from genexp.run_dir.manifest import JobEntry, SweepManifest
from genexp.run_dir.paths import format_path
from genexp.run_dir.status import RunStatus, read_job_status
from genexp.sweep.summary import SweepSummary, format_job_status

REFRESH_SECONDS = 0.5
MAX_LISTED_JOBS = 8  # of running jobs, and again of failed jobs
BAR_WIDTH = 40  # columns


class SweepProgress:
    """Context manager that displays the jobs of a sweep.

    On a terminal it redraws a few lines. Elsewhere it prints one line for each job that ends.
    It can be entered again, once for each batch of a sweep.
    """

    expected_work: float | None = None  # total work in complete jobs; None: the number of jobs in the manifest

    def __init__(self, manifest: SweepManifest, started_at: float) -> None:
        self._manifest, self._started_at = manifest, started_at
        console = Console()  # rich's shared console is silenced while a job runs
        self._view: _LiveJobView | _PlainJobView = (
            _LiveJobView(console) if console.is_terminal else _PlainJobView(console, manifest.sweep_dir)
        )
        self._finished_statuses: dict[JobEntry, RunStatus] = {}
        self._monotonic_start = time.monotonic()
        self._initial_work_done: float | None = None

    def __enter__(self) -> None:
        if self._initial_work_done is None:
            self._initial_work_done = sum(status.fraction_done for status in self._read_statuses().values())
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._refresh_periodically, name="overview", daemon=True)
        self._view.start(self._build_summary())
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_event.set()
        self._thread.join()
        self._view.update(self._build_summary())
        self._view.stop()

    def print_line(self, text: str) -> None:
        """Print a permanent line. On a terminal it appears above the redrawn lines."""
        self._view.print_line(text)

    def _refresh_periodically(self) -> None:
        while not self._stop_event.wait(REFRESH_SECONDS):
            self._view.update(self._build_summary())

    def _build_summary(self) -> SweepSummary:
        statuses = self._read_statuses()
        summary = SweepSummary(statuses, self.expected_work)
        work_done = sum(status.fraction_done for status in statuses.values()) - (self._initial_work_done or 0.0)
        if work_done <= 0:
            return summary
        elapsed = time.monotonic() - self._monotonic_start
        return replace(summary, seconds_left=elapsed * summary.remaining_work / work_done)

    def _read_statuses(self) -> dict[JobEntry, RunStatus]:
        statuses = {}
        for entry in self._manifest.entries:
            min_mtime = 0.0 if entry.number in self._manifest.halted_job_numbers else self._started_at
            status = self._finished_statuses.get(entry) or read_job_status(
                self._manifest.get_run_dir(entry), min_mtime
            )
            if status.state == "finished":
                self._finished_statuses[entry] = status  # final, so the file is not read again
            statuses[entry] = status
        return statuses


class _LiveJobView:
    """Live display on a terminal: a progress bar and a few lines that are redrawn."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def start(self, summary: SweepSummary) -> None:
        self._live.start()
        self.update(summary)

    def update(self, summary: SweepSummary) -> None:
        running, failed = summary.filter_by_state("running"), summary.filter_by_state("failed")
        lines = ["  ".join(part for part in (summary.counts_text, summary.eta_text) if part), *summary.best_lines]
        lines += _format_jobs(running) + _format_jobs(failed)
        bar = ProgressBar(
            total=summary.total_work, completed=summary.total_work - summary.remaining_work, width=BAR_WIDTH
        )
        texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        self._live.update(Group(Padding(bar, 0), *texts), refresh=True)  # Padding ends the line of the bar

    def print_line(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._live.stop()


def _format_jobs(statuses: dict[JobEntry, RunStatus]) -> list[str]:
    lines = [f"  {format_job_status(entry, status)}" for entry, status in statuses.items()]
    return (
        lines
        if len(lines) <= MAX_LISTED_JOBS
        else [*lines[:MAX_LISTED_JOBS], f"  … and {len(lines) - MAX_LISTED_JOBS} more"]
    )


class _PlainJobView:
    """Plain display: one line for each job that ends."""

    def __init__(self, console: Console, sweep_dir: Path) -> None:
        self._console, self._sweep_dir = console, sweep_dir
        self._printed_entries: set[JobEntry] = set()
        self._has_started = False

    def start(self, summary: SweepSummary) -> None:
        if not self._has_started:
            self._printed_entries |= summary.filter_by_state("finished").keys()
            self.print_line(f"{summary.counts_text} → {format_path(self._sweep_dir)}")
        self._has_started = True

    def update(self, summary: SweepSummary) -> None:
        for entry, status in summary.statuses.items():
            if status.state in ("finished", "failed") and entry not in self._printed_entries:
                self._printed_entries.add(entry)
                self.print_line(
                    "  ".join(part for part in (format_job_status(entry, status), summary.eta_text) if part)
                )

    def stop(self) -> None:
        """Do nothing."""

    def print_line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
