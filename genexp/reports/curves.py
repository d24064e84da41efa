"""Plotly charts of metrics over training steps, for one run or for many runs overlaid."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genexp.recorders.curves import LOG_AXIS_RATIO, PALETTE, group_metrics, smooth_curve, widen_limits
from genexp.reports.comparison import Comparison
from genexp.reports.seed_statistics import SeedGroup
from genexp.run_dir.metrics import LoggedCurve
from genexp.run_dir.record import RunRecord

Chart = dict[str, Any]  # "title" (escaped), "traces" and "layout" as defined by plotly.js
LoggedMetrics = Mapping[str, Mapping[str, LoggedCurve]]  # split → metric → curve

MAX_CURVE_POINTS = 1500  # points; longer raw curves keep the minimum and maximum of each bucket
MAX_GRID_POINTS = 400  # points of each curve in a chart of many runs
MAX_PAGE_POINTS = 250_000  # points of all curves on a page of many runs
NUM_BLOCKS = 25  # of a noisy curve; the y axis covers the mean of each block
MAX_COLORED_GROUPS = len(PALETTE)  # seed groups drawn in color; the others are gray
GRAY = "rgba(140, 140, 140, 0.4)"


def build_run_charts(metrics: LoggedMetrics, best: tuple[str, int, float] | None = None) -> list[Chart]:
    """Return one chart for each metric, or group of metrics, of one run.

    A chart shows the raw training values in a faint color, their smoothed curve, and the test values. `best` is
    the objective, and the step and value of its best score, which is marked.
    """
    train, test = (_select_curves(metrics.get(split, {})) for split in ("train", "test"))
    steps_per_epoch = estimate_steps_per_epoch(metrics)
    charts: list[Chart] = []
    for title, names in group_metrics([*train, *(name for name in test if name not in train)]).items():
        traces, y_values, raw_values = [], [], []
        for index, name in enumerate(names):
            color = PALETTE[index % len(PALETTE)]
            if name in train:
                curve, label = train[name], f"{name}, train"
                steps, means = smooth_curve(curve, steps_per_epoch)
                y_values.append(means)
                raw_values.append(curve.values)
                raw_style: dict[str, Any] = {
                    "line": {"color": _make_transparent(color), "width": 1},
                    "legendgroup": label,
                    "showlegend": False,
                    "is_raw": True,  # not smoothed further by the page
                }
                traces.append(build_trace(*downsample_min_max(curve), f"{name}, each step", **raw_style))
                traces.append(
                    build_trace(steps, means, label, line={"color": color, "width": 2}, legendgroup=label)
                )
            if name in test:
                curve = test[name]
                y_values.append(curve.values)
                test_style: dict[str, Any] = {
                    "line": {"color": color, "width": 1.5, "dash": "dot"},
                    "marker": {"size": 6},
                }
                mode = "lines+markers" if len(curve.steps) <= 40 else "lines"
                traces.append(build_trace(*downsample_min_max(curve), f"{name}, test", mode=mode, **test_style))
        has_objective = best is not None and best[0] in names
        if best is not None and has_objective:
            traces.append(_build_best_mark(*best[1:]))
        chart = _build_curve_chart(title, title, traces, y_values, raw_values)
        charts.insert(0 if has_objective else len(charts), chart)
    return charts


def build_sweep_charts(comparison: Comparison, metrics: Mapping[RunRecord, LoggedMetrics]) -> list[Chart]:
    """Return one chart for each split and metric, with one curve for each seed group.

    A curve is the mean over seeds. A band shows its standard error. An objective on test data comes first.
    """
    panels: dict[tuple[str, str], None] = {}
    objective = comparison.objective.metric if comparison.objective else ""
    panels[("test", objective)] = None
    for split in ("test", "train"):
        for splits in metrics.values():
            panels.update(dict.fromkeys((split, name) for name in splits.get(split, {})))
    max_points = min(MAX_GRID_POINTS, max(40, MAX_PAGE_POINTS // (3 * len(panels) * len(comparison.groups))))
    charts = [_build_overlay_chart(comparison.groups, metrics, split, name, max_points) for split, name in panels]
    return [chart for chart in charts if chart is not None]


def downsample_min_max(curve: LoggedCurve, max_points: int = MAX_CURVE_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) with at most `max_points` points, `(points,)` each.

    A longer curve is divided into buckets of consecutive points. The minimum and maximum of each are kept.
    """
    count = len(curve.values)
    if count <= max_points:
        return curve.steps, curve.values
    size = -(-count // (max_points // 2))
    padded = np.full(-(-count // size) * size, np.nan)
    padded[:count] = curve.values
    buckets = padded.reshape(-1, size)
    is_empty = np.isnan(buckets)
    low_indices = np.where(is_empty, np.inf, buckets).argmin(axis=1)
    high_indices = np.where(is_empty, -np.inf, buckets).argmax(axis=1)
    bucket_starts = np.arange(len(buckets)) * size
    kept_indices = np.unique(np.concatenate([bucket_starts + low_indices, bucket_starts + high_indices]))
    return curve.steps[kept_indices], curve.values[kept_indices]


def resample_to_grid(curves: Sequence[LoggedCurve], max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of steps `(steps,)` and the values `(curves, steps)` of several curves on it.

    The grid is the union of all steps, or the centers of `max_points` buckets if the union is larger. A value is
    the mean of the curve's finite values at a step or in a bucket. It is NaN if there are none.
    """
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    edges, centers = np.append(steps, steps[-1] + 1), steps
    if len(steps) > max_points:
        edges = np.linspace(steps[0], steps[-1] + 1, max_points + 1)
        centers = (edges[:-1] + edges[1:]) / 2
    values = np.full((len(curves), len(centers)), np.nan)
    for row, curve in zip(values, curves, strict=True):
        is_finite = np.isfinite(curve.values)
        counts, _ = np.histogram(curve.steps[is_finite], edges)
        sums, _ = np.histogram(curve.steps[is_finite], edges, weights=curve.values[is_finite])
        np.divide(sums, counts, out=row, where=counts > 0)
    return centers, values


def round_for_json(values: np.ndarray) -> list[float | None]:
    """Return `values` (points,) with five significant digits, enough for a screen; None for non-finite ones."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def escape_plotly(text: str) -> str:
    """Return `text` escaped for plotly, which interprets some HTML tags."""
    return html.escape(text, quote=False)


def _select_curves(curves: Mapping[str, LoggedCurve]) -> dict[str, LoggedCurve]:
    """Return the metrics with at least two points. The table of scores shows the others."""
    return {name: curve for name, curve in curves.items() if len(curve.steps) > 1}


def _build_overlay_chart(
    groups: Sequence[SeedGroup], metrics: Mapping[RunRecord, LoggedMetrics], split: str, name: str, max_points: int
) -> Chart | None:
    """Return a chart with the curves of one metric of all groups, or None if it was logged at only one step.

    `max_points` is the maximum number of points of each curve.
    """
    ranked_curves = [
        (rank, metrics[run][split][name], run.state == "finished")
        for rank, group in enumerate(groups)
        for run in _select_drawn_runs(group)
        if name in metrics[run].get(split, {})
    ]
    if len({step for _, curve, _ in ranked_curves for step in (curve.steps[0], curve.steps[-1])}) < 2:
        return None
    steps, values = resample_to_grid([curve for _, curve, _ in ranked_curves], max_points)
    ranks = np.array([rank for rank, _, _ in ranked_curves])
    is_finished = np.array([is_finished for _, _, is_finished in ranked_curves])
    colored_traces: list[dict[str, Any]] = []
    gray_traces: list[dict[str, Any]] = []
    y_values: list[np.ndarray] = []
    raw_values: list[np.ndarray] = []
    for rank in np.unique(ranks).tolist():
        group_values = _hold_last_values(values[ranks == rank], is_finished[ranks == rank])
        traces, edges = _build_group_traces(steps, group_values, groups[rank].label, rank)
        if split == "train":  # values of one step each, or means over a few steps
            raw_values += edges
            edges = [_average_blocks(edge) for edge in edges]
        y_values += edges
        (colored_traces if rank < MAX_COLORED_GROUPS else gray_traces).extend(traces)
    return _build_curve_chart(f"{name}, {split}", name, gray_traces + colored_traces, y_values, raw_values)


def _average_blocks(values: np.ndarray) -> np.ndarray:
    """Return the means of at most NUM_BLOCKS blocks of consecutive `values` (points,), which may be empty."""
    return np.array([block.mean() for block in np.array_split(values, NUM_BLOCKS) if len(block)])


def _build_curve_chart(
    title: str,
    metric: str,
    traces: Sequence[dict[str, Any]],
    y_values: Sequence[np.ndarray],
    raw_values: Sequence[np.ndarray] = (),
) -> Chart:
    layout = _build_axis_layout(y_values, raw_values)
    layout["yaxis"]["title"] = {"text": escape_plotly(metric)}
    return {"title": escape_plotly(title), "traces": traces, "layout": layout, "is_curve": True}


def _build_best_mark(step: int, value: float) -> dict[str, Any]:
    marker = {"symbol": "star", "size": 12, "color": PALETTE[4], "line": {"color": "#1d2126", "width": 1}}
    name = f"best: {value:.4g} at step {step:,}"
    return build_trace(np.array([step]), np.array([value]), name, "markers", marker=marker, is_raw=True)


def _select_drawn_runs(group: SeedGroup) -> list[RunRecord]:
    """Return the runs of `SeedGroup.runs_by_seed`, one for each seed, or all runs of `group` if there are none."""
    return list(group.runs_by_seed.values()) or list(group.runs)


def _hold_last_values(values: np.ndarray, is_finished: np.ndarray) -> np.ndarray:
    """Return `values` (seeds, steps) in which a finished seed keeps its last value until the last seed has ended.

    Otherwise the mean would jump where a run converges before the others. `is_finished` is (seeds,).
    """
    values = values.copy()
    end = int(np.isfinite(values).any(axis=0).nonzero()[0].max(initial=-1)) + 1
    for index in is_finished.nonzero()[0]:
        present = np.isfinite(values[index]).nonzero()[0]
        if len(present):
            values[index, present[-1] + 1 : end] = values[index, present[-1]]
    return values


def _build_group_traces(
    steps: np.ndarray, values: np.ndarray, label: str, group_index: int
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Return the traces of one seed group, and the arrays that must lie within the range of the y axis.

    `steps` is `(steps,)`, `values` is `(seeds, steps)` with NaN for missing values.
    `group_index` selects the color.
    """
    is_finite = np.isfinite(values)
    counts = is_finite.sum(axis=0)
    has_values = counts > 0
    steps, values, counts = steps[has_values], values[:, has_values], counts[has_values]
    means = np.nansum(values, axis=0) / counts
    color = PALETTE[group_index % len(PALETTE)] if group_index < MAX_COLORED_GROUPS else GRAY
    line_style = {"color": color, "width": 2 if group_index < MAX_COLORED_GROUPS else 1}
    mode = "lines+markers" if len(steps) <= 12 else "lines"
    name = f"{label} (n={len(values)})" if len(values) > 1 else label
    line = build_trace(steps, means, name, mode=mode, line=line_style, meta=label, showlegend=False)
    if len(values) == 1 or group_index >= MAX_COLORED_GROUPS:
        return [line], [means]
    deviations = np.nansum((values - means) ** 2, axis=0)
    errors = np.sqrt(deviations / np.maximum(counts - 1, 1) / counts)
    edge_style: dict[str, Any] = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "meta": label}
    low = build_trace(steps, means - errors, label, **edge_style)
    high = build_trace(
        steps, means + errors, label, fill="tonexty", fillcolor=_make_transparent(color), **edge_style
    )
    return [low, high, line], [means - errors, means + errors]


def build_trace(
    x: Sequence[Any] | np.ndarray, y: np.ndarray, name: str, mode: str = "lines", **style: Any
) -> dict[str, Any]:
    """Return a trace of a chart: the points (x, y), with the keys `style` of plotly.js.

    An array `x` contains steps, which are rounded. Other values of `x` are kept.
    """
    x = x.round().astype(int).tolist() if isinstance(x, np.ndarray) else x
    name = escape_plotly(name)
    return {"type": "scatter", "mode": mode, "name": name, "x": x, "y": round_for_json(y), **style}


def _build_axis_layout(y_values: Sequence[np.ndarray], raw_values: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return a layout whose y axis covers `y_values`, and `raw_values` as far as `widen_limits` includes them.

    A double-click shows all values.
    """
    values = np.concatenate([np.asarray(part, float) for part in y_values]) if y_values else np.array([])
    values = values[np.isfinite(values)]
    layout: dict[str, Any] = {"xaxis": {}, "yaxis": {}}
    if not len(values):
        return layout
    low, high = float(values.min()), float(values.max())
    is_log = low > 0 and high > LOG_AXIS_RATIO * low
    for part in raw_values:
        low, high = widen_limits(low, high, part, is_log=is_log)
    if is_log:
        layout["yaxis"] |= {"type": "log", "tickformat": "~g"}
        low, high = math.log10(low), math.log10(high)
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    layout["yaxis"]["range"] = [low - margin, high + margin]
    return layout


def _make_transparent(color: str) -> str:
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.22)"


def estimate_steps_per_epoch(metrics: LoggedMetrics) -> int:
    """Return the steps per epoch, estimated from the curve with the last step. Without curves, return 1."""
    curves = [curve for split in metrics.values() for curve in split.values()]
    last = max(curves, key=lambda curve: curve.steps[-1], default=None)
    return 1 if last is None else max(1, round(last.steps[-1] / max(1, last.epochs[-1])))
