"""Charts of the objective against each setting."""

from __future__ import annotations

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
from genexp.reports.curves import Chart, build_trace, escape_plotly
from genexp.run_dir.record import RunRecord

LOG_SCALE_RATIO = 10  # ratio of largest to smallest positive value from which an axis is logarithmic
MAX_DISTINCT_VALUES = 12  # a setting with more distinct values has no means and no tick for each value


def build_effect_charts(comparison: Comparison) -> list[Chart]:
    """Return one scatter chart of the objective over the values of each setting that differs, with means."""
    if comparison.objective is None:
        return []
    metric = comparison.objective.metric
    runs = [run for run in comparison.runs if run.state != "failed" and metric in run.latest_metrics]
    names = build_column_labels(comparison.differing_keys)
    return [_build_effect_chart(key, names[key], metric, runs) for key in find_differing_keys(runs)]


def _build_effect_chart(key: str, name: str, metric: str, runs: Sequence[RunRecord]) -> Chart:
    values: list[Any] = [get_settings(run).get(key) for run in runs]
    scores = np.array([run.latest_metrics[metric] for run in runs])
    is_numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    x = values if is_numeric else [escape_plotly(format_setting(value)) for value in values]
    points = build_trace(
        x,
        scores,
        "a run",
        "markers",
        text=[escape_plotly(run.name) for run in runs],
        hovertemplate="%{text}: %{y}<extra></extra>",
        marker={"size": 8, "color": PALETTE[0], "opacity": 0.65},
    )
    traces = [points]
    x_axis: dict[str, Any] = {"type": "linear" if is_numeric else "category"}
    if is_numeric and min(values) > 0 and max(values) >= LOG_SCALE_RATIO * min(values):
        x_axis["type"] = "log"
    distinct_values = sorted(set(x)) if is_numeric else list(dict.fromkeys(x))
    if len(distinct_values) <= MAX_DISTINCT_VALUES:
        means = np.array([scores[[value == other for other in x]].mean() for value in distinct_values])
        line = {"color": PALETTE[1], "width": 2}
        traces.append(build_trace(distinct_values, means, "mean", "lines+markers", line=line, showlegend=False))
        if is_numeric:
            x_axis |= {"tickvals": distinct_values, "ticktext": [*map(format_setting_short, distinct_values)]}
    y_axis = {"title": {"text": escape_plotly(metric)}}
    layout = {"xaxis": x_axis, "yaxis": y_axis, "hovermode": "closest"}
    return {"title": escape_plotly(name), "traces": traces, "layout": layout}
