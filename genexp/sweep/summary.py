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
from genexp.sweep.manifest import Ledger
from genexp.sweep.picture import Picture

REPORT = "report.html"


class SweepFailed(GenexpError):
    """Jobs of a sweep have failed."""


@contextmanager
def concluded(folder: Path, begun: float) -> Iterator[None]:
    """Run a sweep in the block; say afterwards what came of it. Raises SweepFailed where jobs have failed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if Ledger(folder).entries:
            _say(folder, begun)
        raise
    picture = _say(folder, begun)
    failed = picture.having("failed")
    if failed:
        entry, standing = next(iter(failed.items()))
        raise SweepFailed(
            f"{len(failed)} of {len(picture.standings)} jobs failed, first {entry.name}: {standing.error}"
        )


def _say(folder: Path, begun: float) -> Picture:
    ledger = Ledger(folder)
    picture = Picture(ledger.standings(begun))
    console = Console()
    _compare(folder, console)
    place = shlex.quote(format_path(folder))
    lines = [picture.counts, *picture.best]
    lines += [
        f"  sweep     {place}",
        f"  scalars   {format_command('tensorboard', '--logdir', format_path(folder))}",
    ]
    if (folder / REPORT).is_file():
        lines.append(f"  report    {shlex.quote(format_path(folder / REPORT))}")
    over = {entry.number for entry in picture.having("finished")} | ledger.halted
    if len(over) < len(picture.standings):
        lines.append(f"  to go on  {_command(folder)}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return picture


def _compare(folder: Path, console: Console) -> None:
    """Print what `genexp-compare` says of the sweep, and write it as a page with curves and pictures."""
    from genexp.reports import compare, print_comparison, write_sweep_report  # slow to import: not at every start

    try:
        comparison = compare([folder])
    except DataError:
        return  # stopped before any job had begun
    print_comparison(comparison, console)
    write_sweep_report(comparison, folder / REPORT)


def _command(folder: Path) -> str:
    """Return the command that goes on with this sweep."""
    words = [word for word in sys.argv[1:] if not word.startswith(("sweep.resume=", "hydra.sweep.dir="))]
    return format_command("genexp", *words, f"sweep.resume={format_path(folder)}")
