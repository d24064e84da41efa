"""Command `genexp-report DIR...`: HTML pages of runs and sweeps, written again from their files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from genexp.cli.common import CommandParser, run_command
from genexp.cli.plugins import add_plugin_option, use_plugins
from genexp.reports import compare, write_run_report, write_sweep_report
from genexp.run_dir.paths import MANIFEST_FILE, REPORT_FILE, format_path
from genexp.run_dir.record import find_runs

PROGRAM = "genexp-report"


def main() -> NoReturn:
    """Write the pages named on the command line."""
    run_command(PROGRAM, lambda: _run(sys.argv[1:]))


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        PROGRAM,
        description="Write report.html of runs and sweeps again: after a crash, for a run that was copied, or as "
        "a single file. The pages of the jobs of a sweep are written too.",
    )
    parser.add_argument("folder", nargs="+", type=Path, metavar="DIR", help="directory of a run or a sweep")
    parser.add_argument(
        "--single-file", action="store_true", help="embed images and scripts, so that the page can be sent"
    )
    add_plugin_option(parser)
    return parser


def _run(arguments: Sequence[str]) -> int:
    args = _build_parser().parse_args(arguments)
    use_plugins(args.plugin)  # checks their names; a page runs no code of them
    for folder in args.folder:
        is_sweep = (folder / MANIFEST_FILE).is_file()
        for run in find_runs([folder]):
            page = write_run_report(run.run_dir, is_single_file=args.single_file)
            if not is_sweep:
                print(format_path(page))
        if is_sweep:
            page = folder / REPORT_FILE
            write_sweep_report(compare([folder]), page, is_single_file=args.single_file)
            print(format_path(page))
    return 0


if __name__ == "__main__":
    main()
