"""Charts of the objective against the settings: one per setting, and parallel coordinates of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from genexp.recorders.curves import PALETTE
from genexp.reports.comparison import Comparison
from genexp.reports.config_diff import (
    build_column_labels,
    find_differing_keys,
    format_setting,
    format_setting_short,
    get_settings,
)
from genexp.reports.curves import Chart, escape_plotly, round_for_json
from genexp.run_dir.record import RunRecord

LOG_SCALE_RATIO = 10  # ratio of largest to smallest positive value from which an axis is logarithmic
MAX_DISTINCT_VALUES = 12  # a setting with more distinct values has no means and no tick for each value
BEST_COLOR, WORST_COLOR = (42, 111, 176), (214, 168, 108)  # RGB; blue and sand, readable on black and white


def build_effect_charts(comparison: Comparison) -> list[Chart]:
    """Return one scatter chart of the objective over the values of each setting that differs, with means."""
    if comparison.objective is None:
        return []
    metric, runs = comparison.objective.metric, _select_scored_runs(comparison)
    names = build_column_labels(comparison.differing_keys)
    return [_build_effect_chart(key, names[key], metric, runs) for key in find_differing_keys(runs)]


def build_parallel_coordinates(comparison: Comparison) -> Chart | None:
    """Return a parallel coordinates chart with one line per run, from its settings to its objective.

    Return None without an objective, or with fewer than two differing settings.
    """
    runs = _select_scored_runs(comparison)
    differing_keys = find_differing_keys(runs)
    if comparison.objective is None or len(differing_keys) < 2:
        return None
    metric = comparison.objective.metric
    scores = [run.latest_metrics[metric] for run in runs]
    settings_list = [get_settings(run) for run in runs]
    axis_values = {
        name: [settings.get(key) for settings in settings_list]
        for key, name in build_column_labels(differing_keys).items()
    }
    parallel_axes = [_ParallelAxis(values) for values in axis_values.values()] + [_ParallelAxis(scores)]
    axis_names = [*axis_values, metric]
    columns = [*axis_values.values(), scores]
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": list(range(len(axis_names))),
            "y": round_for_json(
                np.array([axis.normalize(cell) for axis, cell in zip(parallel_axes, cells, strict=True)])
            ),
            "line": {
                "color": _interpolate_color(rank / max(1, len(runs) - 1)),
                "width": 1.5,
                "shape": "spline",
                "smoothing": 0.6,
            },
            "name": escape_plotly(run.name),
            "text": [
                escape_plotly(f"{axis_name}={format_setting_short(cell)}")
                for axis_name, cell in zip(axis_names, cells, strict=True)
            ],
            "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
            "showlegend": False,
        }
        for rank, (run, cells) in enumerate(zip(runs, zip(*columns, strict=True), strict=True))
    ]
    traces.reverse()  # draws the best run on top
    annotations = [
        {
            "x": index,
            "y": height,
            "text": escape_plotly(text),
            "showarrow": False,
            "xanchor": "right",
            "xshift": -4,
        }
        for index, axis in enumerate(parallel_axes)
        for height, text in axis.get_ticks()
    ]
    layout = {
        "xaxis": {
            "tickvals": list(range(len(axis_names))),
            "ticktext": list(map(escape_plotly, axis_names)),
            "side": "top",
            "showgrid": True,
        },
        "yaxis": {"visible": False, "range": [-0.05, 1.05]},
        "annotations": annotations,
        "hovermode": "closest",
    }
    return {"title": "", "traces": traces, "layout": layout}


class _ParallelAxis:
    """One axis of parallel coordinates, which maps values to [0, 1].

    Numbers are mapped linearly or logarithmically, other values by order of first appearance.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self.is_numeric = _is_numeric(values)
        self.is_log = self.is_numeric and _should_use_log_scale(values)
        self._categories = list(dict.fromkeys(map(format_setting, values)))
        numbers = [self._to_number(value) for value in values]
        self._low, self._high = min(numbers), max(numbers)
        self._tick_values = (
            list(dict.fromkeys(values)) if self.is_numeric and len(set(values)) <= MAX_DISTINCT_VALUES else []
        )

    def normalize(self, value: Any) -> float:
        """Return the position of `value`: 0 for the lowest, 1 for the highest, 0.5 if all are equal."""
        span = self._high - self._low
        return (self._to_number(value) - self._low) / span if span else 0.5

    def get_ticks(self) -> list[tuple[float, str]]:
        """Return (position, label) of each tick."""
        if not self.is_numeric:
            return [(self.normalize(category), category) for category in self._categories]
        if self._tick_values:
            return [(self.normalize(value), f"{value:.4g}") for value in self._tick_values]
        heights = [0.5] if self._high == self._low else [0, 0.25, 0.5, 0.75, 1]
        numbers = [self._low + height * (self._high - self._low) for height in heights]
        return [
            (height, f"{10**value if self.is_log else value:.3g}")
            for height, value in zip(heights, numbers, strict=True)
        ]

    def _to_number(self, value: Any) -> float:
        if not self.is_numeric:
            return float(self._categories.index(format_setting(value)))
        return math.log10(value) if self.is_log else float(value)


def _build_effect_chart(key: str, name: str, metric: str, runs: Sequence[RunRecord]) -> Chart:
    values = [get_settings(run).get(key) for run in runs]
    scores = np.array([run.latest_metrics[metric] for run in runs])
    is_numeric = _is_numeric(values)
    x: list[Any] = values if is_numeric else [escape_plotly(format_setting(value)) for value in values]
    points: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": "a run",
        "x": x,
        "y": round_for_json(scores),
        "text": [escape_plotly(run.name) for run in runs],
        "hovertemplate": "%{text}: %{y}<extra></extra>",
        "marker": {"size": 8, "color": PALETTE[0], "opacity": 0.65},
    }
    traces = [points]
    distinct_values = sorted(set(x)) if is_numeric else list(dict.fromkeys(x))
    if len(distinct_values) <= MAX_DISTINCT_VALUES:
        means = [
            float(scores[[index for index, value in enumerate(x) if value == distinct_value]].mean())
            for distinct_value in distinct_values
        ]
        line = {"color": PALETTE[1], "width": 2}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "mean",
                "showlegend": False,
                "x": distinct_values,
                "y": round_for_json(np.array(means)),
                "line": line,
            }
        )
    axis_type = "category" if not is_numeric else "log" if _should_use_log_scale(values) else "linear"
    ticks = (
        {"tickvals": distinct_values, "ticktext": list(map(format_setting_short, distinct_values))}
        if is_numeric and len(distinct_values) <= MAX_DISTINCT_VALUES
        else {}
    )
    layout = {
        "xaxis": {"type": axis_type, **ticks},
        "yaxis": {"title": {"text": escape_plotly(metric)}},
        "hovermode": "closest",
    }
    return {"title": escape_plotly(name), "traces": traces, "layout": layout}


def _select_scored_runs(comparison: Comparison) -> list[RunRecord]:
    if comparison.objective is None:
        return []
    return [
        run
        for run in comparison.runs
        if run.state != "failed" and comparison.objective.metric in run.latest_metrics
    ]


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _should_use_log_scale(values: Sequence[Any]) -> bool:
    return min(values) > 0 and max(values) >= LOG_SCALE_RATIO * min(values)


def _interpolate_color(fraction: float) -> str:
    """Return the CSS color at `fraction`, from `BEST_COLOR` at 0 to `WORST_COLOR` at 1."""
    channels = (
        round(best + fraction * (worst - best)) for best, worst in zip(BEST_COLOR, WORST_COLOR, strict=True)
    )
    return "rgb({}, {}, {})".format(*channels)
