"""Summary of a sweep: job counts, remaining time, best jobs, comparison report and exit code."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from genexp.errors import DataError, GenexpError
from genexp.run_dir.manifest import JobEntry, SweepManifest
from genexp.run_dir.paths import REPORT_FILE, format_command, format_path
from genexp.run_dir.status import RunStatus

# Display order.
STATE_ORDER = ("finished", "running", "failed", "stopped", "waiting")


@dataclass(frozen=True)
class SweepSummary:
    """Status of all jobs of a sweep at one moment."""

    statuses: Mapping[JobEntry, RunStatus]
    expected_work: float | None = None  # total work in complete jobs; None: the number of `statuses`
    seconds_left: float | None = None  # estimate; None: unknown

    def filter_by_state(self, state: str) -> dict[JobEntry, RunStatus]:
        """Return the jobs whose state is `state`, one of `STATE_ORDER`."""
        return {entry: status for entry, status in self.statuses.items() if status.state == state}

    @property
    def total_work(self) -> float:
        """Total work of the sweep, in complete jobs."""
        return len(self.statuses) if self.expected_work is None else self.expected_work

    @property
    def remaining_work(self) -> float:
        """Remaining work, in complete jobs. A failed job counts as done."""
        done = sum(1.0 if status.state == "failed" else status.fraction_done for status in self.statuses.values())
        return max(0.0, self.total_work - done)

    @property
    def counts_text(self) -> str:
        """Number of jobs in each state, such as `4 jobs: 3 finished, 1 failed`."""
        count_by_state: Counter[str] = Counter(status.state for status in self.statuses.values())
        parts = [f"{count_by_state[state]} {state}" for state in STATE_ORDER if count_by_state[state]]
        n_jobs = len(self.statuses)
        total_text = f" of {self.total_work:.0f}" if self.total_work > n_jobs else ""
        return f"{n_jobs}{total_text} job{'s' if max(n_jobs, self.total_work) > 1 else ''}: {', '.join(parts)}"

    @property
    def eta_text(self) -> str:
        """Estimate of the remaining time, such as `0:01:30 left`; empty if unknown."""
        return f"{timedelta(seconds=round(self.seconds_left))} left" if self.seconds_left else ""

    @property
    def best_lines(self) -> list[str]:
        """One line for each objective, with its best value and job. Techniques may have different objectives."""
        best_by_objective: dict[str, tuple[float, JobEntry]] = {}
        for entry, status in self.statuses.items():
            if status.objective_value is None:
                continue
            best = best_by_objective.get(status.objective)
            sign = 1 if entry.direction == "max" else -1
            if best is None or sign * status.objective_value > sign * best[0]:
                best_by_objective[status.objective] = status.objective_value, entry
        return [
            f"best {objective} {value:.4g} in {entry.name}"
            for objective, (value, entry) in best_by_objective.items()
        ]


def format_job_status(entry: JobEntry, status: RunStatus) -> str:
    """Return one line: name, state, progress, objective and error of a job."""
    parts = [entry.name, status.state]
    if status.state == "running":
        parts.append(f"{status.fraction_done:.0%}")
    if status.objective_value is not None:
        parts.append(f"{status.objective} {status.objective_value:.4g}")
    if status.error:
        parts.append(status.error)
    return "  ".join(parts)


class SweepFailedError(GenexpError):
    """One or more jobs of a sweep failed."""


@contextmanager
def report_on_exit(sweep_dir: Path, started_at: float) -> Iterator[None]:
    """Print the summary of the sweep when the block ends, also after a signal.

    `started_at` is in POSIX seconds. Raises SweepFailedError if jobs failed.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if SweepManifest(sweep_dir).entries:
            _print_and_write_summary(sweep_dir, started_at)
        raise
    summary = _print_and_write_summary(sweep_dir, started_at)
    failed = summary.filter_by_state("failed")
    if failed:
        entry, status = next(iter(failed.items()))
        raise SweepFailedError(
            f"{len(failed)} of {len(summary.statuses)} jobs failed. The first is {entry.name}: {status.error}"
        )


def _print_and_write_summary(sweep_dir: Path, started_at: float) -> SweepSummary:
    manifest = SweepManifest(sweep_dir)
    summary = SweepSummary(manifest.read_statuses(started_at))
    console = Console()
    _print_and_write_comparison(sweep_dir, console)
    quoted_dir = shlex.quote(format_path(sweep_dir))
    lines = [summary.counts_text, *summary.best_lines]
    lines += [
        f"  {'sweep':<11} {quoted_dir}",
        f"  {'tensorboard':<11} {format_command('tensorboard', '--logdir', format_path(sweep_dir))}",
    ]
    if (sweep_dir / REPORT_FILE).is_file():
        lines.append(f"  {'report':<11} {shlex.quote(format_path(sweep_dir / REPORT_FILE))}")
    done = {entry.number for entry in summary.filter_by_state("finished")} | manifest.halted_job_numbers
    if len(done) < len(summary.statuses):
        lines.append(f"  {'resume':<11} {_format_resume_command(sweep_dir)}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return summary


def _print_and_write_comparison(sweep_dir: Path, console: Console) -> None:
    """Print the table of `genexp-compare` for the sweep, and write its HTML report with curves and images."""
    from genexp.reports import compare, print_comparison, write_sweep_report  # slow to import

    try:
        comparison = compare([sweep_dir])
    except DataError:
        return  # stopped before any job started
    print_comparison(comparison, console)
    write_sweep_report(comparison, sweep_dir / REPORT_FILE)


def _format_resume_command(sweep_dir: Path) -> str:
    """Return the command that resumes the sweep."""
    arguments = [
        argument for argument in sys.argv[1:] if not argument.startswith(("sweep.resume=", "hydra.sweep.dir="))
    ]
    return format_command("genexp", *arguments, f"sweep.resume={format_path(sweep_dir)}")
