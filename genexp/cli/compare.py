"""Command `genexp-compare DIR...`: comparison of runs, sorted by their objective, with a paired t-test."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from genexp.cli.common import CommandParser, run_command
from genexp.cli.plugins import add_plugin_option, use_plugins
from genexp.reports import compare, print_comparison, write_sweep_report
from genexp.reports.comparison import check_comparable
from genexp.reports.table import format_json, write_csv

PROGRAM = "genexp-compare"


def main() -> NoReturn:
    """Compare the runs named on the command line."""
    run_command(PROGRAM, lambda: _run(sys.argv[1:]))


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        PROGRAM,
        description="Compare runs in a table sorted by trainer.objective: differing settings, metrics, time and "
        "status. Runs that differ only in the seed are one row with mean ± standard error.",
    )
    parser.add_argument(
        "folder",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="directory of a run or a sweep, or a directory above them",
    )
    output_format = parser.add_mutually_exclusive_group()
    output_format.add_argument("--csv", action="store_true", help="print one CSV line per run, with all metrics")
    output_format.add_argument("--json", action="store_true", help="print the comparison as JSON")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write an HTML page with curves, images and the effect of each setting",
    )
    add_plugin_option(parser)
    return parser


def _run(arguments: Sequence[str]) -> int:
    args = _build_parser().parse_args(arguments)
    use_plugins(args.plugin)  # checks their names; a comparison runs no code of them
    comparison = compare(args.folder)
    check_comparable(comparison)
    if args.csv:
        write_csv(comparison, sys.stdout)
    elif args.json:
        print(format_json(comparison))
    else:
        print_comparison(comparison)
    if args.html:
        write_sweep_report(comparison, args.html)
        print(f"page: {args.html}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main()
