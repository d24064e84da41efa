"""Metrics over steps as charts: one run's in all detail, or those of many runs over each other."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genexp.recorders.curves import LOG_AXIS_RATIO, PALETTE, group_metrics, smooth_curve
from genexp.reports.comparison import Comparison
from genexp.reports.seed_statistics import SeedGroup
from genexp.run_dir.metrics import LoggedCurve
from genexp.run_dir.record import RunRecord

Chart = dict[str, Any]  # title, traces and layout as plotly has them
MetricColumns = Mapping[str, Mapping[str, LoggedCurve]]  # split → metric → column

MAX_CURVE_POINTS = 1500  # points of a curve with every step in it; of more the lowest and highest of each bucket
MAX_GRID_POINTS = 400  # points of a curve among many, at most
MAX_PAGE_POINTS = 250_000  # points of all curves of a page together
MAX_COLORED_GROUPS = 8  # settings that stand out; the others are a gray background
GRAY = "rgba(140, 140, 140, 0.4)"


def build_run_charts(metrics: MetricColumns) -> list[Chart]:
    """Return a chart for each metric, or group of them, of one run: every step faintly, means, and test scores."""
    train, test = (_select_curves(metrics.get(split, {})) for split in ("train", "test"))
    steps_per_epoch = _estimate_steps_per_epoch([*train.values(), *test.values()])
    charts = []
    for title, names in group_metrics([*train, *(name for name in test if name not in train)]).items():
        traces, y_values = [], []
        for rank, name in enumerate(names):
            color = PALETTE[rank % len(PALETTE)]
            if name in train:
                column, label = train[name], f"{name}, train"
                steps, means = smooth_curve(column, steps_per_epoch)
                y_values.append(means)
                raw_style: dict[str, Any] = {
                    "line": {"color": _make_transparent(color), "width": 1},
                    "legendgroup": label,
                    "showlegend": False,
                }
                traces.append(_build_trace(*downsample_min_max(column), f"{name}, each step", **raw_style))
                traces.append(
                    _build_trace(steps, means, label, line={"color": color, "width": 2}, legendgroup=label)
                )
            if name in test:
                column = test[name]
                y_values.append(column.values)
                test_style: dict[str, Any] = {
                    "line": {"color": color, "width": 1.5, "dash": "dot"},
                    "marker": {"size": 6},
                }
                mode = "lines+markers" if len(column.steps) <= 40 else "lines"
                traces.append(_build_trace(*downsample_min_max(column), f"{name}, test", mode=mode, **test_style))
        charts.append({"title": escape_plotly(title), "traces": traces, "layout": _build_axes(y_values)})
    return charts


def build_sweep_charts(comparison: Comparison, metrics: Mapping[RunRecord, MetricColumns]) -> list[Chart]:
    """Return a chart for each metric with a curve for each setting: the mean over its seeds, and their band."""
    panels: dict[tuple[str, str], None] = {}
    objective = comparison.objective.metric if comparison.objective else ""
    panels[("test", objective)] = None
    for split in ("test", "train"):
        for splits in metrics.values():
            panels.update(dict.fromkeys((split, name) for name in splits.get(split, {})))
    points = min(MAX_GRID_POINTS, max(40, MAX_PAGE_POINTS // (3 * len(panels) * len(comparison.groups))))
    charts = [_build_overlay_chart(comparison.groups, metrics, split, name, points) for split, name in panels]
    return [chart for chart in charts if chart is not None]


def downsample_min_max(column: LoggedCurve, max_points: int = MAX_CURVE_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) of at most `points`: the lowest and the highest of each bucket."""
    count = len(column.values)
    if count <= max_points:
        return column.steps, column.values
    size = -(-count // (max_points // 2))
    padded = np.full(-(-count // size) * size, np.nan)
    padded[:count] = column.values
    buckets = padded.reshape(-1, size)
    is_empty = np.isnan(buckets)
    low = np.where(is_empty, np.inf, buckets).argmin(axis=1)
    high = np.where(is_empty, -np.inf, buckets).argmax(axis=1)
    bucket_starts = np.arange(len(buckets)) * size
    kept_rows = np.unique(np.concatenate([bucket_starts + low, bucket_starts + high]))
    return column.steps[kept_rows], column.values[kept_rows]


def resample_to_grid(columns: Sequence[LoggedCurve], max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values (columns, steps)) at common steps: all there are, or means of `points` buckets.

    A step that a column does not have is NaN.
    """
    steps = np.unique(np.concatenate([column.steps for column in columns]))
    if len(steps) > max_points:
        edges = np.linspace(steps[0], steps[-1] + 1, max_points + 1)
        centers = (edges[:-1] + edges[1:]) / 2
        bucket_indices = [np.searchsorted(edges, column.steps, side="right") - 1 for column in columns]
    else:
        centers = steps
        bucket_indices = [np.searchsorted(steps, column.steps) for column in columns]
    values = np.full((len(columns), len(centers)), np.nan)
    for row, buckets, column in zip(values, bucket_indices, columns, strict=True):
        is_finite = np.isfinite(column.values)
        counts = np.bincount(buckets[is_finite], minlength=len(centers))
        sums = np.bincount(buckets[is_finite], weights=column.values[is_finite], minlength=len(centers))
        row[counts > 0] = sums[counts > 0] / counts[counts > 0]
    return centers, values


def round_for_json(values: np.ndarray) -> list[float | None]:
    """Return numbers for JSON in five digits, which is finer than a screen; null for what is not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def escape_plotly(text: str) -> str:
    """Return text so that plotly, which reads a few tags, shows it as it is."""
    return html.escape(text, quote=False)


def _select_curves(columns: Mapping[str, LoggedCurve]) -> dict[str, LoggedCurve]:
    """Return the metrics that make a curve; the others are in the table of scores."""
    return {name: column for name, column in columns.items() if len(column.steps) > 1}


def _build_overlay_chart(
    groups: Sequence[SeedGroup], metrics: Mapping[RunRecord, MetricColumns], split: str, name: str, points: int
) -> Chart | None:
    """Return a metric's curves over each other; None where it was measured once: it is in the table."""
    ranked_curves = [
        (rank, metrics[run][split][name])
        for rank, group in enumerate(groups)
        for run in _select_drawn_runs(group)
        if name in metrics[run].get(split, {})
    ]
    if len({step for _, column in ranked_curves for step in (column.steps[0], column.steps[-1])}) < 2:
        return None
    steps, values = resample_to_grid([column for _, column in ranked_curves], points)
    ranks = np.array([rank for rank, _ in ranked_curves])
    colored_traces: list[dict[str, Any]] = []
    gray_traces: list[dict[str, Any]] = []
    y_values = []
    for rank in np.unique(ranks).tolist():
        group_values = values[ranks == rank]
        traces, edges = _build_curve(steps, group_values, groups[rank].label, rank)
        y_values += edges
        (colored_traces if rank < MAX_COLORED_GROUPS else gray_traces).extend(traces)
    return {
        "title": escape_plotly(f"{name}, {split}"),
        "traces": gray_traces + colored_traces,
        "layout": _build_axes(y_values),
    }


def _select_drawn_runs(group: SeedGroup) -> list[RunRecord]:
    """Return the runs of a group whose curve counts; of one without any that ended, all."""
    return list(group.runs_by_seed.values()) or list(group.runs)


def _build_curve(
    steps: np.ndarray, values: np.ndarray, label: str, rank: int
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Return the traces of a setting and what is to be seen of it: values (seeds, steps)."""
    is_finite = np.isfinite(values)
    counts = is_finite.sum(axis=0)
    has_values = counts > 0
    steps, values, counts = steps[has_values], values[:, has_values], counts[has_values]
    means = np.nansum(values, axis=0) / counts
    color = PALETTE[rank % len(PALETTE)] if rank < MAX_COLORED_GROUPS else GRAY
    line_style = {"color": color, "width": 2 if rank < MAX_COLORED_GROUPS else 1}
    mode = "lines+markers" if len(steps) <= 12 else "lines"
    name = f"{label} (n={len(values)})" if len(values) > 1 else label
    line = _build_trace(steps, means, name, mode=mode, line=line_style, meta=label, showlegend=False)
    if len(values) == 1 or rank >= MAX_COLORED_GROUPS:
        return [line], [means]
    deviations = np.nansum((values - means) ** 2, axis=0)
    errors = np.sqrt(deviations / np.maximum(counts - 1, 1) / counts)
    edge_style: dict[str, Any] = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "meta": label}
    low = _build_trace(steps, means - errors, label, **edge_style)
    high = _build_trace(
        steps, means + errors, label, fill="tonexty", fillcolor=_make_transparent(color), **edge_style
    )
    return [low, high, line], [means - errors, means + errors]


def _build_trace(
    steps: np.ndarray, values: np.ndarray, name: str, mode: str = "lines", **style: Any
) -> dict[str, Any]:
    x = steps.round().astype(int).tolist()
    return {
        "type": "scatter",
        "mode": mode,
        "name": escape_plotly(name),
        "x": x,
        "y": round_for_json(values),
        **style,
    }


def _build_axes(y_values: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return axes that show the means: single steps may shoot over, and a double click shows them too."""
    values = np.concatenate([np.asarray(part, float) for part in y_values]) if y_values else np.array([])
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


def _make_transparent(color: str) -> str:
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.22)"


def _estimate_steps_per_epoch(columns: Sequence[LoggedCurve]) -> int:
    """Return the steps of an epoch, as the log tells them."""
    for column in columns:
        later = column.steps[column.epochs > column.epochs[0]]
        if len(later):
            return max(1, round(int(column.steps[-1]) / int(column.epochs[-1])))
    return max((int(column.steps[-1]) for column in columns), default=1)
