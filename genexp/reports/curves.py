"""Metrics over steps as charts: one run's in all detail, or those of many runs over each other."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genexp.recorders.curves import PALETTE, LOG_AXIS_RATIO, group_metrics, smooth_curve
from genexp.reports.comparison import Comparison
from genexp.reports.seed_statistics import Group
from genexp.run_dir.metrics import LoggedCurve
from genexp.run_dir.record import RunRecord

Chart = dict[str, Any]  # title, traces and layout as plotly has them
Metrics = Mapping[str, Mapping[str, LoggedCurve]]  # split → metric → column

STEPS_SHOWN = 1500  # points of a curve with every step in it; of more the lowest and highest of each bucket
GRID = 400  # points of a curve among many, at most
BUDGET = 250_000  # points of all curves of a page together
COLOURED = 8  # settings that stand out; the others are a grey background
GREY = "rgba(140, 140, 140, 0.4)"


def run_charts(metrics: Metrics) -> list[Chart]:
    """Return a chart for each metric, or group of them, of one run: every step faintly, means, and test scores."""
    train, test = (_longer_than_a_point(metrics.get(split, {})) for split in ("train", "test"))
    steps_per_epoch = _steps_per_epoch([*train.values(), *test.values()])
    charts = []
    for title, names in group_metrics([*train, *(name for name in test if name not in train)]).items():
        traces, heights = [], []
        for rank, name in enumerate(names):
            colour = PALETTE[rank % len(PALETTE)]
            if name in train:
                column, label = train[name], f"{name}, train"
                steps, means = smooth_curve(column, steps_per_epoch)
                heights.append(means)
                raw: dict[str, Any] = {
                    "line": {"color": _faint(colour), "width": 1},
                    "legendgroup": label,
                    "showlegend": False,
                }
                traces.append(_line(*thinned(column), f"{name}, each step", **raw))
                traces.append(_line(steps, means, label, line={"color": colour, "width": 2}, legendgroup=label))
            if name in test:
                column = test[name]
                heights.append(column.values)
                dashes: dict[str, Any] = {
                    "line": {"color": colour, "width": 1.5, "dash": "dot"},
                    "marker": {"size": 6},
                }
                few = "lines+markers" if len(column.steps) <= 40 else "lines"
                traces.append(_line(*thinned(column), f"{name}, test", mode=few, **dashes))
        charts.append({"title": in_chart(title), "traces": traces, "layout": _frame(heights)})
    return charts


def sweep_charts(comparison: Comparison, metrics: Mapping[RunRecord, Metrics]) -> list[Chart]:
    """Return a chart for each metric with a curve for each setting: the mean over its seeds, and their band."""
    panels: dict[tuple[str, str], None] = {}
    objective = comparison.objective.metric if comparison.objective else ""
    panels[("test", objective)] = None
    for split in ("test", "train"):
        for found in metrics.values():
            panels.update(dict.fromkeys((split, name) for name in found.get(split, {})))
    points = min(GRID, max(40, BUDGET // (3 * len(panels) * len(comparison.groups))))
    charts = [_overlay(comparison.groups, metrics, split, name, points) for split, name in panels]
    return [chart for chart in charts if chart is not None]


def thinned(column: LoggedCurve, points: int = STEPS_SHOWN) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) of at most `points`: the lowest and the highest of each bucket."""
    count = len(column.values)
    if count <= points:
        return column.steps, column.values
    size = -(-count // (points // 2))
    padded = np.full(-(-count // size) * size, np.nan)
    padded[:count] = column.values
    buckets = padded.reshape(-1, size)
    empty = np.isnan(buckets)
    low = np.where(empty, np.inf, buckets).argmin(axis=1)
    high = np.where(empty, -np.inf, buckets).argmax(axis=1)
    begins = np.arange(len(buckets)) * size
    kept = np.unique(np.concatenate([begins + low, begins + high]))
    return column.steps[kept], column.values[kept]


def on_grid(columns: Sequence[LoggedCurve], points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values (columns, steps)) at common steps: all there are, or means of `points` buckets.

    A step that a column does not have is NaN.
    """
    steps = np.unique(np.concatenate([column.steps for column in columns]))
    if len(steps) > points:
        edges = np.linspace(steps[0], steps[-1] + 1, points + 1)
        centres = (edges[:-1] + edges[1:]) / 2
        places = [np.searchsorted(edges, column.steps, side="right") - 1 for column in columns]
    else:
        centres = steps
        places = [np.searchsorted(steps, column.steps) for column in columns]
    values = np.full((len(columns), len(centres)), np.nan)
    for row, place, column in zip(values, places, columns, strict=True):
        finite = np.isfinite(column.values)
        counts = np.bincount(place[finite], minlength=len(centres))
        sums = np.bincount(place[finite], weights=column.values[finite], minlength=len(centres))
        row[counts > 0] = sums[counts > 0] / counts[counts > 0]
    return centres, values


def compact(values: np.ndarray) -> list[float | None]:
    """Return numbers for JSON in five digits, which is finer than a screen; null for what is not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def in_chart(text: str) -> str:
    """Return text so that plotly, which reads a few tags, shows it as it is."""
    return html.escape(text, quote=False)


def _longer_than_a_point(columns: Mapping[str, LoggedCurve]) -> dict[str, LoggedCurve]:
    """Return the metrics that make a curve; the others are in the table of scores."""
    return {name: column for name, column in columns.items() if len(column.steps) > 1}


def _overlay(
    groups: Sequence[Group], metrics: Mapping[RunRecord, Metrics], split: str, name: str, points: int
) -> Chart | None:
    """Return a metric's curves over each other; None where it was measured once: it is in the table."""
    owners = [
        (rank, metrics[run][split][name])
        for rank, group in enumerate(groups)
        for run in _drawn(group)
        if name in metrics[run].get(split, {})
    ]
    if len({step for _, column in owners for step in (column.steps[0], column.steps[-1])}) < 2:
        return None
    steps, values = on_grid([column for _, column in owners], points)
    ranks = np.array([rank for rank, _ in owners])
    front: list[dict[str, Any]] = []
    back: list[dict[str, Any]] = []
    heights = []
    for rank in np.unique(ranks).tolist():
        mine = values[ranks == rank]
        traces, edges = _curve(steps, mine, groups[rank].label, rank)
        heights += edges
        (front if rank < COLOURED else back).extend(traces)
    return {"title": in_chart(f"{name}, {split}"), "traces": back + front, "layout": _frame(heights)}


def _drawn(group: Group) -> list[RunRecord]:
    """Return the runs of a group whose curve counts; of one without any that ended, all."""
    return list(group.counted.values()) or list(group.runs)


def _curve(
    steps: np.ndarray, values: np.ndarray, label: str, rank: int
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Return the traces of a setting and what is to be seen of it: values (seeds, steps)."""
    there = np.isfinite(values)
    counts = there.sum(axis=0)
    some = counts > 0
    steps, values, counts = steps[some], values[:, some], counts[some]
    means = np.nansum(values, axis=0) / counts
    colour = PALETTE[rank % len(PALETTE)] if rank < COLOURED else GREY
    look = {"color": colour, "width": 2 if rank < COLOURED else 1}
    mode = "lines+markers" if len(steps) <= 12 else "lines"
    name = f"{label} (n={len(values)})" if len(values) > 1 else label
    line = _line(steps, means, name, mode=mode, line=look, meta=label, showlegend=False)
    if len(values) == 1 or rank >= COLOURED:
        return [line], [means]
    deviations = np.nansum((values - means) ** 2, axis=0)
    errors = np.sqrt(deviations / np.maximum(counts - 1, 1) / counts)
    edge: dict[str, Any] = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "meta": label}
    low = _line(steps, means - errors, label, **edge)
    high = _line(steps, means + errors, label, fill="tonexty", fillcolor=_faint(colour), **edge)
    return [low, high, line], [means - errors, means + errors]


def _line(steps: np.ndarray, values: np.ndarray, name: str, mode: str = "lines", **look: Any) -> dict[str, Any]:
    x = steps.round().astype(int).tolist()
    return {"type": "scatter", "mode": mode, "name": in_chart(name), "x": x, "y": compact(values), **look}


def _frame(heights: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return axes that show the means: single steps may shoot over, and a double click shows them too."""
    values = np.concatenate([np.asarray(part, float) for part in heights]) if heights else np.array([])
    values = values[np.isfinite(values)]
    layout: dict[str, Any] = {"xaxis": {}, "yaxis": {}}
    if not len(values):
        return layout
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > LOG_AXIS_RATIO * low:
        layout["yaxis"] |= {"type": "log", "tickformat": "~g"}
        low, high = math.log10(low), math.log10(high)
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    layout["yaxis"]["range"] = [low - margin, high + margin]
    return layout


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.22)"


def _steps_per_epoch(columns: Sequence[LoggedCurve]) -> int:
    """Return the steps of an epoch, as the log tells them."""
    for column in columns:
        later = column.steps[column.epochs > column.epochs[0]]
        if len(later):
            return max(1, round(int(column.steps[-1]) / int(column.epochs[-1])))
    return max((int(column.steps[-1]) for column in columns), default=1)
