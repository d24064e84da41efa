"""`genexp-compare FOLDER...`: runs beside each other, the best first, and whether it leads by more than noise."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from genexp.cli.common import Parser, run_command
from genexp.reports import compare, print_comparison, write_sweep_report
from genexp.reports.comparison import check_comparable
from genexp.reports.table import to_json, write_csv

PROGRAM = "genexp-compare"


def main() -> NoReturn:
    """Compare the runs named on the command line."""
    run_command(PROGRAM, lambda: _work(sys.argv[1:]))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        PROGRAM,
        description="Show runs beside each other, sorted by their objective: the settings that differ, metrics, "
        "time and state; seeds of one setting as mean ± standard error.",
    )
    parser.add_argument(
        "folder", nargs="+", type=Path, metavar="FOLDER", help="a run's, a sweep's, or one that holds some"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="print a line of CSV for each run, with all metrics")
    shape.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write a page with curves, pictures and the effect of settings",
    )
    return parser


def _work(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    comparison = compare(given.folder)
    check_comparable(comparison)
    if given.csv:
        write_csv(comparison, sys.stdout)
    elif given.json:
        print(to_json(comparison))
    else:
        print_comparison(comparison)
    if given.html:
        write_sweep_report(comparison, given.html)
        print(f"written to {given.html}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main()
