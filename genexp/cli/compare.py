"""Command `genexp-compare DIR...`: comparison of runs, sorted by their objective, with a paired t-test."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from genexp.cli.common import CommandParser, run_command
from genexp.cli.plugins import add_plugin_option, use_plugins
from genexp.errors import ConfigError
from genexp.reports import Comparison, compare, print_comparison, write_sweep_report
from genexp.reports.comparison import check_comparable
from genexp.reports.config_diff import build_column_labels, format_setting_short, get_settings
from genexp.reports.table import format_json, write_csv
from genexp.run_dir.paths import EVENT_FILE_PREFIX, find_events_dir, format_command

PROGRAM = "genexp-compare"
MAX_LINK_CHARACTERS = 120  # of the name of a link
COLUMNS_FILE = f"{EVENT_FILE_PREFIX}0.{PROGRAM}"  # event file with the columns of TensorBoard's HParams page


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
    parser.add_argument(
        "--tensorboard",
        type=Path,
        metavar="FOLDER",
        help="also write links to the TensorBoard logs, named by run and settings, for `tensorboard --logdir`",
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
        write_sweep_report(comparison, args.html, is_single_file=True)
        print(f"page: {args.html}", file=sys.stderr)
    if args.tensorboard:
        link_tensorboard_logs(comparison, args.tensorboard)
        print(f"logs: {format_command('tensorboard', '--logdir', str(args.tensorboard))}", file=sys.stderr)
    return 0


def link_tensorboard_logs(comparison: Comparison, folder: Path) -> None:
    """Write a link to the TensorBoard logs of each run into `folder`, whose other links are removed.

    The name of a link has model, run and settings: `vae/3 lr=0.001 seed=0`. An event file in `folder` limits the
    columns of TensorBoard's HParams page to the differing settings and the objectives. Raises ConfigError if
    `folder` has other files, and OSError.
    """
    from genexp.recorders.tensorboard import get_scalar_tag, write_hparams_columns  # imports torch

    old = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()] if folder.exists() else []
    if not all(path.is_symlink() or path == folder / COLUMNS_FILE for path in old) or folder.is_file():
        raise ConfigError(f"--tensorboard={folder}: contains other files than links. Use a new folder.")
    for path in old:
        path.unlink()
    labels = build_column_labels([key for key in comparison.differing_keys if key != "model.name"])
    for run in comparison.runs:
        settings = {label: get_settings(run).get(key) for key, label in labels.items()} | {"seed": run.seed}
        words = (f"{label.rpartition('.')[2]}={format_setting_short(value)}" for label, value in settings.items())
        name = " ".join([run.name, *words]).replace("/", "_")[:MAX_LINK_CHARACTERS]
        link = folder / run.model_name.replace("/", "_").lstrip(".") / name
        events_dir = find_events_dir(run.run_dir)
        if any(events_dir.glob(f"{EVENT_FILE_PREFIX}*")):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(events_dir.resolve(), target_is_directory=True)
    objectives = {run.objective for run in comparison.runs if run.objective}
    examples = {key: get_settings(comparison.runs[0]).get(key) for key in comparison.differing_keys}
    examples |= {"seed": 0}
    folder.mkdir(parents=True, exist_ok=True)
    write_hparams_columns(
        folder / COLUMNS_FILE, examples, [get_scalar_tag(name, "test") for name in sorted(objectives)]
    )


if __name__ == "__main__":
    main()
