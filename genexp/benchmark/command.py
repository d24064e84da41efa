"""`python scripts/benchmark.py SUITE`: measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from genexp.benchmark import trainer
from genexp.benchmark.rounds import Comparison
from genexp.device import describe_device
from genexp.environment import describe_environment

SUITES = {"trainer": trainer.run}


def main() -> None:
    """Run the suites named on the command line."""
    parser = argparse.ArgumentParser(description="Measure genexp against rivals on the same work, in turn.")
    parser.add_argument("suite", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds; medians are quoted")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    device = torch.device("cpu")
    comparisons = [row for suite in options.suite for row in SUITES[suite](options.rounds)]
    Console().print(_table(comparisons, f"{describe_device(device)}, {platform.machine()}"))
    if options.json:
        content = {"environment": describe_environment(device), "results": [row.as_dict() for row in comparisons]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _table(comparisons: list[Comparison], machine: str) -> Table:
    table = Table(title=f"Medians of paired rounds on {machine}")
    for column in ("work", "rival", "genexp", "rival's", "ratio", "from … to"):
        table.add_column(column)
    for row in comparisons:
        table.add_row(
            row.task,
            row.rival,
            f"{row.ours_per_second:,.0f} {row.unit}",
            f"{row.rival_per_second:,.0f} {row.unit}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f} … {row.high:.3f}",
        )
    return table
