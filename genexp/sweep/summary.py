"""What is said when a sweep has ended, and how its command exits."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from genexp.errors import DataError, GenexpError
from genexp.run_dir.paths import format_command, format_path
from genexp.sweep.manifest import SweepManifest
from genexp.sweep.picture import SweepSummary

REPORT_FILE = "report.html"


class SweepFailedError(GenexpError):
    """Jobs of a sweep have failed."""


@contextmanager
def report_on_exit(sweep_dir: Path, started_at: float) -> Iterator[None]:
    """Run a sweep in the block; say afterwards what came of it. Raises SweepFailed where jobs have failed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if SweepManifest(sweep_dir).entries:
            _print_summary(sweep_dir, started_at)
        raise
    summary = _print_summary(sweep_dir, started_at)
    failed = summary.filter_by_state("failed")
    if failed:
        entry, status = next(iter(failed.items()))
        raise SweepFailedError(
            f"{len(failed)} of {len(summary.statuses)} jobs failed, first {entry.name}: {status.error}"
        )


def _print_summary(sweep_dir: Path, started_at: float) -> SweepSummary:
    manifest = SweepManifest(sweep_dir)
    summary = SweepSummary(manifest.read_statuses(started_at))
    console = Console()
    _write_comparison(sweep_dir, console)
    quoted_dir = shlex.quote(format_path(sweep_dir))
    lines = [summary.counts_text, *summary.best_lines]
    lines += [
        f"  sweep     {quoted_dir}",
        f"  scalars   {format_command('tensorboard', '--logdir', format_path(sweep_dir))}",
    ]
    if (sweep_dir / REPORT_FILE).is_file():
        lines.append(f"  report    {shlex.quote(format_path(sweep_dir / REPORT_FILE))}")
    done = {entry.number for entry in summary.filter_by_state("finished")} | manifest.halted_jobs
    if len(done) < len(summary.statuses):
        lines.append(f"  to go on  {_format_resume_command(sweep_dir)}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return summary


def _write_comparison(sweep_dir: Path, console: Console) -> None:
    """Print what `genexp-compare` says of the sweep, and write it as a page with curves and pictures."""
    from genexp.reports import compare, print_comparison, write_sweep_report  # slow to import: not at every start

    try:
        comparison = compare([sweep_dir])
    except DataError:
        return  # stopped before any job had begun
    print_comparison(comparison, console)
    write_sweep_report(comparison, sweep_dir / REPORT_FILE)


def _format_resume_command(sweep_dir: Path) -> str:
    """Return the command that goes on with this sweep."""
    arguments = [
        argument for argument in sys.argv[1:] if not argument.startswith(("sweep.resume=", "hydra.sweep.dir="))
    ]
    return format_command("genexp", *arguments, f"sweep.resume={format_path(sweep_dir)}")
