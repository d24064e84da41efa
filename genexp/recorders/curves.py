"""Curves of a run, drawn from its metrics log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genexp.run_dir.metrics import LoggedCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RAW_POINTS = 5000  # more single steps than this are a smear
WINDOWS = 300  # points of a smoothed curve at most
FEW_EPOCHS = 8  # with fewer, windows shorter than an epoch show more
COLOURS = ("#2a6fb0", "#d1632a", "#3d8f4f", "#8a56a5", "#b8373f", "#6b6b6b", "#b08a1e", "#2a9d9a")
LOG_RATIO = 50  # a wider range of positive values is drawn on a logarithmic axis
PANEL = (5.2, 3.4)  # inches
# What a panel leaves around its frame, in inches. It is fixed: to find it takes matplotlib as long as to draw all.
LEFT, RIGHT, BELOW, ABOVE = 0.85, 0.15, 0.55, 0.15
TITLE = 0.4  # inches


def draw_curves(path: Path, metrics: Mapping[str, Mapping[str, LoggedCurve]], title: str, steps_per_epoch: int) -> None:
    """Write a picture with a panel for each metric, or group of metrics, of the splits "train" and "test"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train, test = metrics.get("train", {}), metrics.get("test", {})
    groups = grouped([*train, *(name for name in test if name not in train)])
    last = max(int(column.steps[-1]) for split in (train, test) for column in split.values())
    epochs = last / steps_per_epoch
    columns = 1 if len(groups) == 1 else 2 if len(groups) <= 4 else 3
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines + TITLE), dpi=110)
    FigureCanvasAgg(figure)
    _set_margins(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    for place, (panel, names) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        colours = [COLOURS[rank % len(COLOURS)] for rank in range(len(names))]
        for name, colour in zip(names, colours, strict=True):
            if name in train:
                _draw_means(axes, train[name], name, colour, steps_per_epoch)
            if name in test:
                _draw_test(axes, test[name], name, colour, steps_per_epoch)
        _dress(axes, panel)
        axes.set_xlim(-0.02 * epochs, 1.02 * epochs)
        for name, colour in zip(names, colours, strict=True):
            if name in train and len(train[name].steps) <= RAW_POINTS:
                _draw_steps(axes, train[name], colour, steps_per_epoch)
    figure.savefig(path)


def _set_margins(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=LEFT / width,
        right=1 - RIGHT / width,
        bottom=BELOW / height,
        top=1 - (ABOVE + TITLE) / height,
        wspace=(LEFT + RIGHT) / (PANEL[0] - LEFT - RIGHT),
        hspace=(BELOW + ABOVE) / (PANEL[1] - BELOW - ABOVE),
    )


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Return panel → metrics: losses (generator_loss, critic_loss) share one, others differ in their magnitude."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("loss" if name.endswith("_loss") else name, []).append(name)
    return {group if len(members) > 1 else members[0]: members for group, members in groups.items()}


def smoothed(column: LoggedCurve, steps_per_epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values): the mean over each epoch, or over shorter or longer windows where these say more."""
    epochs = int(column.epochs[-1] - column.epochs[0]) + 1
    window = steps_per_epoch
    if epochs < FEW_EPOCHS:
        window = max(1, epochs * steps_per_epoch // 25)
    elif epochs > WINDOWS:
        window = steps_per_epoch * -(-epochs // WINDOWS)
    finite = np.isfinite(column.values)
    steps, values = column.steps[finite], column.values[finite]
    _, starts, counts = np.unique((steps - 1) // window, return_index=True, return_counts=True)
    if not len(starts):
        return steps, values
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _draw_means(axes: Axes, column: LoggedCurve, name: str, colour: str, steps_per_epoch: int) -> None:
    steps, values = smoothed(column, steps_per_epoch)
    marker = "o" if len(steps) == 1 else ""
    label = f"{name}, train"
    axes.plot(steps / steps_per_epoch, values, color=colour, linewidth=1.8, marker=marker, label=label, zorder=3)


def _draw_test(axes: Axes, column: LoggedCurve, name: str, colour: str, steps_per_epoch: int) -> None:
    few = len(column.steps) <= 40
    axes.plot(
        column.steps / steps_per_epoch,
        column.values,
        color=colour,
        linewidth=1.2,
        linestyle=(0, (3, 2)),
        marker="o" if few else "",
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        label=f"{name}, test",
        zorder=4,
    )


def _dress(axes: Axes, panel: str) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > LOG_RATIO * values.min():
        axes.set_yscale("log")
    axes.margins(y=0.1)
    axes.set_xlabel("epoch")
    axes.set_ylabel(panel)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _draw_steps(axes: Axes, column: LoggedCurve, colour: str, steps_per_epoch: int) -> None:
    """Draw every single step faintly in the background, where it falls within the frame that the means set."""
    axes.set_ylim(axes.get_ylim())
    epochs = column.steps / steps_per_epoch
    axes.plot(epochs, column.values, color=colour, alpha=0.25, linewidth=0.7, zorder=1)
