"""Command line of the benchmark suites: paired measurements as a table and as JSON."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import platform
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmark import clock, scaling_plot
from benchmark.paired_rounds import PairedComparison
from genexp.device import describe_device
from genexp.run_dir.environment import describe_environment

SUITES: dict[str, tuple[str, tuple[str, ...]]] = {  # suite → module, packages it requires
    "trainer": ("trainer", ("lightning",)),
    "kmeans": ("kmeans", ("faiss",)),
    "style": ("style", ()),
    "start": ("startup", ()),
    "scaling": ("scaling", ()),
    "logging": ("logging_overhead", ()),
    "sweep": ("sweep", ("joblib",)),
}


def main() -> None:
    """Run the suites named on the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmark", description="Measure genexp against rivals on the same work, in turn."
    )
    parser.add_argument("suite", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--rounds", type=_parse_count, default=5, help="paired rounds; medians are quoted")
    parser.add_argument(
        "--clock", choices=clock.CLOCKS, default="wall", help="processor: of one thread, where the machine is busy"
    )
    parser.add_argument("--json", type=_parse_output_path, help="also write the figures to this file")
    parser.add_argument(
        "--figure", type=_parse_output_path, help="also draw what the scaling suite found to this file"
    )
    options = parser.parse_args()
    if options.figure and "scaling" not in options.suite:
        parser.error("--figure draws what the suite scaling finds; add scaling")
    clock.select_clock(options.clock)
    device = torch.device("cpu")
    comparisons: list[PairedComparison] = []
    for suite in options.suite:
        comparisons += (suite_results := _run_suite(suite, options.rounds))
        Console().print(_build_table(suite_results, f"{describe_device(device)}, {platform.machine()}"))
    if options.figure:
        scaling_plot.plot_scaling([row for row in comparisons if row.unit in scaling_plot.UNITS], options.figure)
    if options.json:
        content = {"environment": describe_environment(device), "results": [row.as_dict() for row in comparisons]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _parse_count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no count; give 1 or more")
    return int(text)


def _parse_output_path(text: str) -> Path:
    """Return the path if its directory exists. Checked before the measurement, which takes minutes."""
    path = Path(text)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written; give a file in a folder that exists")
    return path


def _run_suite(suite: str, rounds: int) -> list[PairedComparison]:
    """Return a suite's comparisons, with the output of its runs suppressed."""
    module, packages = SUITES[suite]
    for package in packages:
        if find_spec(package) is None:
            sys.exit(f"benchmark: {suite} needs {package}; pip install 'genexp[benchmark]'")
    print(f"measuring {suite} …", file=sys.stderr)
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            rows: list[PairedComparison] = importlib.import_module(f"benchmark.{module}").run(rounds)
    finally:
        logging.disable(logging.NOTSET)
    return rows


def _build_table(comparisons: list[PairedComparison], machine: str) -> Table:
    table = Table(title=f"Medians of paired rounds on {machine}")
    for column in ("work", "rival", "genexp", "rival's", "ratio", "from … to"):
        table.add_column(column)
    for row in comparisons:
        table.add_row(
            row.task,
            row.rival,
            f"{_format_value(row.ours)} {row.unit}",
            f"{_format_value(row.theirs)} {row.unit}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f} … {row.high:.3f}",
        )
    return table


def _format_value(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
