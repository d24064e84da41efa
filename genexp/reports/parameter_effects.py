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
from genexp.reports.curves import Chart, escape_plotly, round_for_json
from genexp.run_dir.record import RunRecord

LOG_SCALE_RATIO = 10  # ratio of largest to smallest positive value from which an axis is logarithmic
MAX_DISTINCT_VALUES = 12  # a setting with more distinct values has no means and no tick for each value


def build_effect_charts(comparison: Comparison) -> list[Chart]:
    """Return one scatter chart of the objective over the values of each setting that differs, with means."""
    if comparison.objective is None:
        return []
    metric, runs = comparison.objective.metric, _select_scored_runs(comparison)
    names = build_column_labels(comparison.differing_keys)
    return [_build_effect_chart(key, names[key], metric, runs) for key in find_differing_keys(runs)]


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
