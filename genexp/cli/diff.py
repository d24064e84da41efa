"""Command `genexp-diff RUN_A RUN_B`: differences between two runs, and the first step with different metrics."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from genexp.cli.common import CommandParser, run_command
from genexp.reports.run_diff import RunDiff, ValuePair, diff_runs

if TYPE_CHECKING:
    from rich.console import Console

PROGRAM = "genexp-diff"
MAX_LISTED_METRICS = 10  # differing metrics listed below the summary


def main() -> NoReturn:
    """Compare the two runs named on the command line."""
    run_command(PROGRAM, lambda: _run(sys.argv[1:]))


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        PROGRAM,
        description="Show the differences between two runs: configuration, code, data, environment, results, "
        "and the first step with different metrics.",
    )
    parser.add_argument("left", type=Path, metavar="RUN_A", help="directory of a run")
    parser.add_argument("right", type=Path, metavar="RUN_B", help="directory of another run")
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")
    return parser


def _run(arguments: Sequence[str]) -> int:
    args = _build_parser().parse_args(arguments)
    run_diff = diff_runs(args.left, args.right)
    if args.json:
        print(json.dumps(_diff_to_dict(run_diff), indent=2, ensure_ascii=False))
    else:
        _print_diff(run_diff)
    return 0


def _print_diff(run_diff: RunDiff) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 1000
    for name, pairs in run_diff.sections.items():
        _print_section(console, name, pairs, run_diff)
    differing_metrics = [metric for metric in run_diff.metric_differences if metric.is_different]
    lines = [
        f"  {metric.metric} from step {metric.step:,}" for metric in differing_metrics[1 : MAX_LISTED_METRICS + 1]
    ]
    for line in [run_diff.summary, *lines]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_section(console: Console, name: str, pairs: Mapping[str, ValuePair], run_diff: RunDiff) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    if not pairs:
        console.print(f"{name}: no difference", highlight=False)
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column(name)
    for run in run_diff.runs:
        table.add_column(escape(run.name), overflow="fold")
    for key, values in pairs.items():
        table.add_row(key, *("" if value is None else escape(value) for value in values))
    console.print(table)


def _diff_to_dict(run_diff: RunDiff) -> dict[str, object]:
    metrics = [asdict(metric) for metric in run_diff.metric_differences]
    return {
        "runs": [str(run.run_dir) for run in run_diff.runs],
        **run_diff.sections,
        "metrics": metrics,
        "verdict": run_diff.summary,
    }


if __name__ == "__main__":
    main()
