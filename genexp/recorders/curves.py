"""Figure with the training and test curves of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genexp.run_dir.files import write_file
from genexp.run_dir.metrics import LoggedCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_RAW_POINTS = 5000  # single steps of longer curves are not drawn: they would merge into an area
MAX_SMOOTHED_POINTS = 300  # approximate limit; beyond it, a window spans several epochs
MIN_EPOCHS_FOR_EPOCH_MEANS = 8  # shorter curves are averaged over windows shorter than an epoch
PALETTE = ("#2a6fb0", "#d1632a", "#3d8f4f", "#8a56a5", "#b8373f", "#6b6b6b", "#b08a1e", "#2a9d9a")
LOG_AXIS_RATIO = 50  # positive values with a larger max/min use a logarithmic axis
PANEL_INCHES = (5.2, 3.4)  # width, height
# Margins of a panel. Fixed: automatic layout takes matplotlib as long as drawing everything.
LEFT_INCHES, RIGHT_INCHES, BOTTOM_INCHES, TOP_INCHES = 0.85, 0.15, 0.55, 0.15
TITLE_INCHES = 0.4  # height of the figure title


def write_curves_figure(
    path: Path, metrics: Mapping[str, Mapping[str, LoggedCurve]], title: str, steps_per_epoch: int
) -> None:
    """Write a figure to `path`, with a panel for each metric or group of metrics.

    `metrics` maps split ("train", "test") → metric → curve. Other splits are ignored.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train, test = metrics.get("train", {}), metrics.get("test", {})
    groups = group_metrics([*train, *(name for name in test if name not in train)])
    last_step = max(int(curve.steps[-1]) for split in (train, test) for curve in split.values())
    epochs = last_step / steps_per_epoch
    grid_columns = 1 if len(groups) == 1 else 2 if len(groups) <= 4 else 3
    grid_rows = -(-len(groups) // grid_columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * grid_columns, PANEL_INCHES[1] * grid_rows + TITLE_INCHES), dpi=110)
    FigureCanvasAgg(figure)
    _set_margins(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    for position, (panel, names) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(grid_rows, grid_columns, position)
        colors = [PALETTE[index % len(PALETTE)] for index in range(len(names))]
        for name, color in zip(names, colors, strict=True):
            if name in train:
                _draw_smoothed_train_curve(axes, train[name], name, color, steps_per_epoch)
            if name in test:
                _draw_test_curve(axes, test[name], name, color, steps_per_epoch)
        _style_axes(axes, panel)
        axes.set_xlim(-0.02 * epochs, 1.02 * epochs)
        for name, color in zip(names, colors, strict=True):
            if name in train and len(train[name].steps) <= MAX_RAW_POINTS:
                _draw_raw_train_curve(axes, train[name], color, steps_per_epoch)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_file(path, content.getvalue())


def _set_margins(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=LEFT_INCHES / width,
        right=1 - RIGHT_INCHES / width,
        bottom=BOTTOM_INCHES / height,
        top=1 - (TOP_INCHES + TITLE_INCHES) / height,
        wspace=(LEFT_INCHES + RIGHT_INCHES) / (PANEL_INCHES[0] - LEFT_INCHES - RIGHT_INCHES),
        hspace=(BOTTOM_INCHES + TOP_INCHES) / (PANEL_INCHES[1] - BOTTOM_INCHES - TOP_INCHES),
    )


def group_metrics(names: Sequence[str]) -> dict[str, list[str]]:
    """Return panel label → names of the metrics in the panel.

    Metrics named `loss` or `*_loss` share one panel. Other metrics differ in magnitude and have a panel each.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("loss" if name.endswith("_loss") else name, []).append(name)
    return {group if len(members) > 1 else members[0]: members for group, members in groups.items()}


def smooth_curve(curve: LoggedCurve, steps_per_epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (steps, values), each (windows,), over consecutive windows of a curve.

    A window is an epoch. It is shorter for a run of few epochs, and several epochs for a run of many.
    Values that are not finite are left out.
    """
    epochs = int(curve.epochs[-1] - curve.epochs[0]) + 1
    window = steps_per_epoch
    if epochs < MIN_EPOCHS_FOR_EPOCH_MEANS:
        window = max(1, epochs * steps_per_epoch // 25)
    elif epochs > MAX_SMOOTHED_POINTS:
        window = steps_per_epoch * -(-epochs // MAX_SMOOTHED_POINTS)
    finite = np.isfinite(curve.values)
    steps, values = curve.steps[finite], curve.values[finite]
    _, starts, counts = np.unique((steps - 1) // window, return_index=True, return_counts=True)
    if not len(starts):
        return steps, values
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _draw_smoothed_train_curve(
    axes: Axes, curve: LoggedCurve, name: str, color: str, steps_per_epoch: int
) -> None:
    steps, values = smooth_curve(curve, steps_per_epoch)
    marker = "o" if len(steps) == 1 else ""
    label = f"{name}, train"
    axes.plot(steps / steps_per_epoch, values, color=color, linewidth=1.8, marker=marker, label=label, zorder=3)


def _draw_test_curve(axes: Axes, curve: LoggedCurve, name: str, color: str, steps_per_epoch: int) -> None:
    has_markers = len(curve.steps) <= 40
    axes.plot(
        curve.steps / steps_per_epoch,
        curve.values,
        color=color,
        linewidth=1.2,
        linestyle=(0, (3, 2)),
        marker="o" if has_markers else "",
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        label=f"{name}, test",
        zorder=4,
    )


def _style_axes(axes: Axes, ylabel: str) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > LOG_AXIS_RATIO * values.min():
        axes.set_yscale("log")
    axes.margins(y=0.1)
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _draw_raw_train_curve(axes: Axes, curve: LoggedCurve, color: str, steps_per_epoch: int) -> None:
    """Draw the values of single steps faintly in the background, without changing the y limits of the axes."""
    axes.set_ylim(axes.get_ylim())
    epochs = curve.steps / steps_per_epoch
    axes.plot(epochs, curve.values, color=color, alpha=0.25, linewidth=0.7, zorder=1)
