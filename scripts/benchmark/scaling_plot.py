"""Figure of the scaling suite: one column per axis, with time above memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmark.paired_rounds import PairedComparison

UNITS = ("ms/step", "MB")


def plot_scaling(rows: Sequence[PairedComparison], path: Path) -> None:
    """Plot the comparisons of the scaling suite to `path`. Each task begins with the value of its axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    axes = list(dict.fromkeys(row.task.partition(" ")[2] for row in rows))
    figure = Figure(figsize=(3 * len(axes), 5), layout="constrained")
    panels = figure.subplots(len(UNITS), len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        for unit, panel in zip(UNITS, panels[:, column], strict=True):
            selected = [row for row in rows if row.task.partition(" ")[2] == axis and row.unit == unit]
            values = [int(row.task.partition(" ")[0].replace(",", "")) for row in selected]
            panel.plot(values, [row.ours for row in selected], marker="o")
            panel.set_xscale("log")
            panel.set_xticks(values, [f"{value:,}" for value in values])
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.yaxis.set_major_formatter(ScalarFormatter())
            panel.set_ylim(0, 1.1 * max((row.ours for row in selected), default=1))
            panel.grid(alpha=0.3)
        panels[-1, column].set_xlabel(axis)
    for unit, panel in zip(("milliseconds a step", "megabytes held at most"), panels[:, 0], strict=True):
        panel.set_ylabel(unit)
    figure.savefig(path, dpi=80)
