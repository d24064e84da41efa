"""Figure with the training and test curves of a run."""

from __future__ import annotations

import io
import textwrap
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
# The palette of Okabe and Ito (2008), without its yellow, which is too light for lines: distinguishable with
# color vision deficiency.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b")
LOG_AXIS_RATIO = 50  # positive values with a larger max/min use a logarithmic axis
MIN_ABBREVIATED_VALUE = 1e5  # from this largest value on, the labels of an axis are abbreviated by k, M, …
MAX_SHORT_VALUE = 1e-2  # below this largest value, the labels of an axis have four significant digits
MIN_RELATIVE_RANGE = 3e-4  # smallest range of a y axis, relative to its largest value
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MAX_TICKS = 5  # of an axis; drawing one takes a millisecond
PANEL_INCHES = (5.2, 3.4)  # width, height
# Margins of a panel. Fixed: automatic layout takes matplotlib as long as drawing everything.
LEFT_INCHES, RIGHT_INCHES, BOTTOM_INCHES, TOP_INCHES = 0.85, 0.15, 0.55, 0.35
AXES_INCHES = PANEL_INCHES[1] - BOTTOM_INCHES - TOP_INCHES  # height of the axes within a panel
TITLE_INCHES = 0.4  # height of the figure title
TEXT_LINE_INCHES = 0.22  # height of a line of values below the panels
TEXT_LINE_CHARACTERS = 60  # for each column of panels


def write_curves_figure(
    path: Path,
    metrics: Mapping[str, Mapping[str, LoggedCurve]],
    title: str,
    steps_per_epoch: int,
    *,
    objective: str = "",
    direction: str = "min",
) -> None:
    """Write a figure to `path`, with a panel for each metric or group of metrics.

    `metrics` maps split ("train", "test") → metric → curve. Other splits are ignored. Metrics with one value are
    a line of text below the panels. The best value of the test metric `objective` is marked: the smallest if
    `direction` is "min", else the largest.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    splits = {split: metrics.get(split, {}) for split in ("train", "test")}
    names = list(dict.fromkeys(name for curves in splits.values() for name in curves))
    longest = {
        name: max(len(curves[name].steps) for curves in splits.values() if name in curves) for name in names
    }
    text_lines = _format_single_values(splits, [name for name in names if longest[name] == 1])
    groups = group_metrics([name for name in names if longest[name] > 1])
    last_step = max(int(curve.steps[-1]) for curves in splits.values() for curve in curves.values())
    grid_columns = 1 if len(groups) <= 1 else 2 if len(groups) <= 4 else 3
    grid_rows = -(-len(groups) // grid_columns)
    text = textwrap.fill(text_lines, TEXT_LINE_CHARACTERS * grid_columns) if text_lines else ""
    text_inches = TEXT_LINE_INCHES * (text.count("\n") + 2) if text else 0.0
    height = PANEL_INCHES[1] * grid_rows + TITLE_INCHES + text_inches
    figure = Figure(figsize=(PANEL_INCHES[0] * grid_columns, height), dpi=110)
    canvas = FigureCanvasAgg(figure)
    if groups:
        _set_margins(figure, text_inches)
    figure.suptitle(title, fontsize=13, fontweight="bold", y=1 - 0.5 * TITLE_INCHES / height, va="center")
    if text:
        figure.text(0.15 / PANEL_INCHES[0], 0.5 * text_inches / height, text, fontsize=9, va="center")
    for position, (panel, members) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(grid_rows, grid_columns, position)
        _draw_panel(axes, splits, members, steps_per_epoch)
        if objective in members and objective in splits["test"]:
            _mark_best_value(axes, splits["test"][objective], direction, steps_per_epoch)
        _style_axes(axes, panel, last_step / steps_per_epoch)
        _draw_raw_train_curves(axes, splits["train"], members, steps_per_epoch)
    canvas.draw()
    write_file(path, _encode_png(np.asarray(canvas.buffer_rgba())))


def _encode_png(pixels: np.ndarray) -> bytes:
    """Return a PNG file with 256 colors. It has a third of the bytes, and is most of the size of a small run.

    `pixels` are (height, width, 4).
    """
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(content, "PNG")
    return content.getvalue()


def _format_single_values(splits: Mapping[str, Mapping[str, LoggedCurve]], names: Sequence[str]) -> str:
    """Return the values of metrics that were measured once, with their split."""
    values = [
        f"{name} {curves[name].values[-1]:.4g} ({split})"
        for name in names
        for split, curves in splits.items()
        if name in curves
    ]
    return f"Measured once: {', '.join(values)}." if values else ""


def _set_margins(figure: Figure, text_inches: float) -> None:
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=LEFT_INCHES / width,
        right=1 - RIGHT_INCHES / width,
        bottom=(BOTTOM_INCHES + text_inches) / height,
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
    Values that are not finite are omitted.
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


def _draw_panel(
    axes: Axes, splits: Mapping[str, Mapping[str, LoggedCurve]], names: Sequence[str], steps_per_epoch: int
) -> None:
    """Draw the curves of one panel: solid for training, dashed for test, one color for each metric."""
    for name, color in zip(names, _cycle_colors(len(names)), strict=True):
        prefix = f"{name}, " if len(names) > 1 else ""
        if name in splits["train"]:
            _draw_smoothed_train_curve(axes, splits["train"][name], f"{prefix}train", color, steps_per_epoch)
        if name in splits["test"]:
            _draw_test_curve(axes, splits["test"][name], f"{prefix}test", color, steps_per_epoch)


def _cycle_colors(count: int) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(count)]


def _draw_smoothed_train_curve(
    axes: Axes, curve: LoggedCurve, label: str, color: str, steps_per_epoch: int
) -> None:
    steps, values = smooth_curve(curve, steps_per_epoch)
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps / steps_per_epoch, values, color=color, linewidth=1.8, marker=marker, label=label, zorder=3)


def _draw_test_curve(axes: Axes, curve: LoggedCurve, label: str, color: str, steps_per_epoch: int) -> None:
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
        label=label,
        zorder=4,
    )


def _mark_best_value(axes: Axes, curve: LoggedCurve, direction: str, steps_per_epoch: int) -> None:
    """Mark the best finite value of a test curve by a star."""
    values = np.where(np.isfinite(curve.values), curve.values, np.inf if direction == "min" else -np.inf)
    index = values.argmin() if direction == "min" else values.argmax()
    if not np.isfinite(values[index]):
        return
    epoch = curve.steps[index] / steps_per_epoch
    label = f"best: {values[index]:.4g} at epoch {epoch:.4g}"
    axes.plot(epoch, values[index], "*", color="black", markersize=11, label=label, zorder=5)


def _style_axes(axes: Axes, title: str, epochs: float) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > LOG_AXIS_RATIO * values.min():
        axes.set_yscale("log")
        # matplotlib's own labels of a log axis are formulas, which take long to parse.
        axes.yaxis.set_major_formatter(_format_power_of_ten)
        axes.minorticks_off()
    else:
        axes.locator_params(axis="y", nbins=MAX_TICKS)
        _format_ticks(axes, np.abs(values).max(initial=0))
    axes.locator_params(axis="x", nbins=MAX_TICKS)
    axes.margins(y=0.1)
    axes.set_xlim(-0.02 * epochs, 1.02 * epochs)
    # With fixed positions of title and labels, matplotlib computes all ticks twice instead of four times.
    axes.set_title(title, loc="left", fontsize=11, y=1.0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_label_coords(0.5, -0.5 * BOTTOM_INCHES / AXES_INCHES)
    axes.yaxis.set_label_coords(0, 0.5)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _format_ticks(axes: Axes, largest: float) -> None:
    """Label the y axis by complete numbers. A common factor would be written over the title.

    `largest` is the largest absolute value of the curves.
    """
    from matplotlib.ticker import EngFormatter, ScalarFormatter

    if largest >= MIN_ABBREVIATED_VALUE:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))  # for example 2.05M
    elif largest < MAX_SHORT_VALUE:
        axes.yaxis.set_major_formatter("{x:.4g}")
    else:
        formatter = ScalarFormatter(useOffset=False)
        formatter.set_scientific(False)
        axes.yaxis.set_major_formatter(formatter)


def _format_power_of_ten(value: float, _position: float) -> str:
    return f"10{str(round(np.log10(value))).translate(SUPERSCRIPTS)}"


def _draw_raw_train_curves(
    axes: Axes, curves: Mapping[str, LoggedCurve], names: Sequence[str], steps_per_epoch: int
) -> None:
    """Draw the values of single steps faintly in the background, with the y limits of `widen_limits`."""
    bottom, top = axes.get_ylim()
    for name, color in zip(names, _cycle_colors(len(names)), strict=True):
        if name in curves and len(curves[name].steps) <= MAX_RAW_POINTS:
            values = curves[name].values
            axes.plot(
                curves[name].steps / steps_per_epoch, values, color=color, alpha=0.25, linewidth=0.7, zorder=1
            )
            bottom, top = widen_limits(bottom, top, values, is_log=axes.get_yscale() == "log")
    # Narrower limits would need labels of more digits than fit beside the axis.
    missing = MIN_RELATIVE_RANGE * max(abs(bottom), abs(top)) - (top - bottom)
    if missing > 0 and axes.get_yscale() == "linear":
        bottom, top = bottom - missing / 2, top + missing / 2
    axes.set_ylim(bottom, top)


def widen_limits(bottom: float, top: float, values: np.ndarray, *, is_log: bool) -> tuple[float, float]:
    """Return the limits of a y axis, widened so that they include nine tenths of `values` (steps,).

    The smallest and largest twentieth may lie outside: outliers would leave little room for smoothed curves.
    """
    shown = values[np.isfinite(values) & ((values > 0) | (not is_log))]
    if not len(shown):
        return bottom, top
    low, high = np.percentile(shown, (5, 95)).tolist()
    return min(bottom, low), max(top, high)
