"""Figure of the results: the score of each generative technique against the minutes of one core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_curves(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot the entries of results.json that have a curve, and are in the first comparison with curves, to `path`.

    A curve is that of the first seed. Both axes are logarithmic. Raises OSError.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    entries = [entry for entry in results if entry["curve"]]
    entries = [entry for entry in entries if entry["comparison"] == entries[0]["comparison"]]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for entry in entries:
        minutes, scores = zip(*entry["curve"], strict=True)
        axes.plot(minutes, scores, marker="o", markersize=3, label=entry["model"])
    axes.set(
        xscale="log", yscale="log", xlabel="minutes of one core", ylabel=f"{entries[0]['metric']}, lower is better"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
