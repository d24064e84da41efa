"""Command line of the benchmark suites: paired measurements as a table, as JSON, and against stored results."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import platform
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmark import clock, command, scaling_plot, stored_results
from benchmark.paired_rounds import PairedComparison
from benchmark.stored_results import StoredResults
from genexp.device import describe_device
from genexp.run_dir.environment import describe_environment

SUITES: dict[str, tuple[str, tuple[str, ...]]] = {  # suite → module, packages it requires
    "command": ("command", ()),
    "trainer": ("trainer", ("lightning",)),
    "kmeans": ("kmeans", ()),
    "style": ("style", ()),
    "start": ("startup", ()),
    "scaling": ("scaling", ()),
    "logging": ("logging_overhead", ()),
    "libraries": ("libraries", ("torchmetrics",)),
    "sweep": ("sweep", ("joblib",)),
}
Rows = list[PairedComparison]


def main() -> None:
    """Run the suites named on the command line."""
    if sys.argv[1:2] == ["gpu"]:  # its result is a report of checks and rates, not a table of ratios
        from benchmark import gpu

        gpu.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="benchmark", description="Measure genexp and other programs on the same work, in alternating rounds."
    )
    parser.add_argument("suite", nargs="+", choices=sorted(SUITES))
    parser.add_argument(
        "--rounds",
        type=_parse_count,
        help="paired rounds, of which medians are reported (default: 5; with --check 1)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=command.PARTS, default=(), metavar="PART",
        help=f"parts of the suite command: {', '.join(command.PARTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--clock",
        choices=clock.CLOCKS,
        default="wall",
        help="processor measures the time of one thread, for a busy machine",
    )
    parser.add_argument("--json", type=_parse_output_path, help="also write the figures to this file")
    parser.add_argument(
        "--store", action="store_true", help="store the results; update scripts/README.md and README.md"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare with the stored results; exit code 1 if a ratio fell by more than a tenth",
    )
    parser.add_argument(
        "--figure", type=_parse_output_path, help="also plot the results of the suite scaling to this file"
    )
    options = parser.parse_args()
    if options.figure and "scaling" not in options.suite:
        parser.error("--figure: requires the suite scaling. Add it.")
    if options.only and options.suite != ["command"]:
        parser.error("--only: applies to the suite command. Remove the other suites.")
    rounds = options.rounds or (1 if options.check else 5)
    clock.select_clock(options.clock)
    device = torch.device("cpu")
    all_rows: Rows = []
    losses: list[str] = []
    for suite, parts in _list_measurements(options.suite, options.only):
        results = _run_suite(suite, rounds, parts)
        rows = [row for part_rows in results.values() for row in part_rows]
        all_rows += rows
        Console().print(_build_table(rows, f"{describe_device(device)}, {platform.machine()}"))
        if options.check:
            losses += _find_losses(results)
        if options.store:  # at once: the next measurement takes minutes, and can fail
            _store(results, rounds)
    if options.figure:
        scaling_plot.plot_scaling([row for row in all_rows if row.unit in scaling_plot.UNITS], options.figure)
    if options.json:
        content = {"environment": describe_environment(device), "results": [row.as_dict() for row in all_rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    if losses:
        sys.exit("\n".join(["benchmark: fell by more than a tenth:", *losses]))


def _list_measurements(suites: Sequence[str], only: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the measurements in their order: a suite with its parts. Each part of `command` is one of its own."""
    return [
        (suite, parts)
        for suite in suites
        for parts in ([(part,) for part in only or command.PARTS] if suite == "command" else [()])
    ]


def _parse_count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def _parse_output_path(text: str) -> Path:
    """Return the path if its directory exists. Checked before the measurement, which takes minutes."""
    path = Path(text)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a file in an existing directory")
    return path


def _run_suite(suite: str, rounds: int, parts: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return the rows of a suite by the name of their stored results, with the output of its runs suppressed."""
    module, packages = SUITES[suite]
    for package in packages:
        if find_spec(package) is None:
            sys.exit(f"benchmark: {suite}: requires the package {package}. Run `pip install 'genexp[benchmark]'`.")
    print(f"measuring {suite} …", file=sys.stderr)
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            if suite == "command":
                return {f"command-{part}": rows for part, rows in command.run(rounds, parts).items()}
            return {suite: importlib.import_module(f"benchmark.{module}").run(rounds)}
    finally:
        logging.disable(logging.NOTSET)


def _find_losses(results: dict[str, Rows]) -> list[str]:
    losses = []
    for name, rows in results.items():
        path = stored_results.RESULTS_DIR / f"{name}.json"
        if path.is_file():
            losses += StoredResults.read(path).find_losses(rows)
        else:
            print(f"benchmark: no results of {name} are stored", file=sys.stderr)
    return losses


def _store(results: dict[str, Rows], rounds: int) -> None:
    for name, rows in results.items():
        StoredResults.describe(name, rows, rounds, clock.get_selected_clock()).write(stored_results.RESULTS_DIR)
    for readme, update in (
        (stored_results.README, stored_results.update_tables),
        (stored_results.MAIN_README, stored_results.update_quotes),
    ):
        readme.write_text(update(readme.read_text(encoding="utf-8")), encoding="utf-8")


def _build_table(comparisons: list[PairedComparison], machine: str) -> Table:
    table = Table(title=f"Medians of paired rounds on {machine}")
    for column in ("work", "rival", "measure", "genexp", "rival's", "ratio", "from … to"):
        table.add_column(column)
    for row in comparisons:
        table.add_row(
            row.task,
            row.rival,
            row.measure,
            f"{_format_value(row.ours)} {row.unit}",
            f"{_format_value(row.theirs)} {row.unit}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f} … {row.high:.3f}",
        )
    return table


def _format_value(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
