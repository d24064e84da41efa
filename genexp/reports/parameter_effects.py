"""What settings do to the objective: each by itself, and all of them as parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from genexp.recorders.curves import PALETTE
from genexp.reports.comparison import Comparison
from genexp.reports.config_diff import brief, differing, settings, short_names, shown
from genexp.reports.curves import Chart, compact, in_chart
from genexp.run_dir.record import RunRecord

LOG_RATIO = 10  # settings that span more are drawn on a logarithmic axis
FEW = 12  # values whose means are joined
BEST, WORST = (42, 111, 176), (214, 168, 108)  # blue to sand, readable on black and on white


def effect_charts(comparison: Comparison) -> list[Chart]:
    """Return a chart for each setting that differs: the objective of every run over its value, and the means."""
    if comparison.objective is None:
        return []
    metric, runs = comparison.objective.metric, _scored(comparison)
    names = short_names(comparison.parameters)
    return [_effect(key, names[key], metric, runs) for key in differing(runs)]


def parallel_chart(comparison: Comparison) -> Chart | None:
    """Return a line for each run through its settings to its objective; None where there is too little for one."""
    runs = _scored(comparison)
    parameters = differing(runs)
    if comparison.objective is None or len(parameters) < 2:
        return None
    metric = comparison.objective.metric
    scores = [run.scores[metric] for run in runs]
    mine = [settings(run) for run in runs]
    axes = {name: [each.get(key) for each in mine] for key, name in short_names(parameters).items()}
    scales = [_Scale(values) for values in axes.values()] + [_Scale(scores)]
    heads = [*axes, metric]
    columns = [*axes.values(), scores]
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": list(range(len(heads))),
            "y": compact(np.array([scale.place(cell) for scale, cell in zip(scales, cells, strict=True)])),
            "line": {
                "color": _colour(rank / max(1, len(runs) - 1)),
                "width": 1.5,
                "shape": "spline",
                "smoothing": 0.6,
            },
            "name": in_chart(run.name),
            "text": [in_chart(f"{head}={brief(cell)}") for head, cell in zip(heads, cells, strict=True)],
            "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
            "showlegend": False,
        }
        for rank, (run, cells) in enumerate(zip(runs, zip(*columns, strict=True), strict=True))
    ]
    traces.reverse()  # the best on top
    marks = [
        {"x": place, "y": height, "text": in_chart(text), "showarrow": False, "xanchor": "right", "xshift": -4}
        for place, scale in enumerate(scales)
        for height, text in scale.ticks()
    ]
    layout = {
        "xaxis": {
            "tickvals": list(range(len(heads))),
            "ticktext": list(map(in_chart, heads)),
            "side": "top",
            "showgrid": True,
        },
        "yaxis": {"visible": False, "range": [-0.05, 1.05]},
        "annotations": marks,
        "hovermode": "closest",
    }
    return {"title": "", "traces": traces, "layout": layout}


class _Scale:
    """Where a value stands on an axis from 0 to 1: by its size, or by its rank among words."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.numeric = _are_numbers(values)
        self.log = self.numeric and _spans_magnitudes(values)
        self._words = list(dict.fromkeys(map(shown, values)))
        numbers = [self._number(value) for value in values]
        self._low, self._high = min(numbers), max(numbers)
        self._few = list(dict.fromkeys(values)) if self.numeric and len(set(values)) <= FEW else []

    def place(self, value: Any) -> float:
        """Return 0 for the lowest value, 1 for the highest, 0.5 where there is only one."""
        span = self._high - self._low
        return (self._number(value) - self._low) / span if span else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return (place, text) of the values to name."""
        if not self.numeric:
            return [(self.place(word), word) for word in self._words]
        if self._few:
            return [(self.place(value), f"{value:.4g}") for value in self._few]
        heights = [0.5] if self._high == self._low else [0, 0.25, 0.5, 0.75, 1]
        numbers = [self._low + height * (self._high - self._low) for height in heights]
        return [
            (height, f"{10**value if self.log else value:.3g}")
            for height, value in zip(heights, numbers, strict=True)
        ]

    def _number(self, value: Any) -> float:
        if not self.numeric:
            return float(self._words.index(shown(value)))
        return math.log10(value) if self.log else float(value)


def _effect(key: str, name: str, metric: str, runs: Sequence[RunRecord]) -> Chart:
    values = [settings(run).get(key) for run in runs]
    scores = np.array([run.scores[metric] for run in runs])
    numeric = _are_numbers(values)
    x: list[Any] = values if numeric else [in_chart(shown(value)) for value in values]
    dots: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": "a run",
        "x": x,
        "y": compact(scores),
        "text": [in_chart(run.name) for run in runs],
        "hovertemplate": "%{text}: %{y}<extra></extra>",
        "marker": {"size": 8, "color": PALETTE[0], "opacity": 0.65},
    }
    traces = [dots]
    distinct = sorted(set(x)) if numeric else list(dict.fromkeys(x))
    if len(distinct) <= FEW:
        means = [
            float(scores[[place for place, value in enumerate(x) if value == each]].mean()) for each in distinct
        ]
        line = {"color": PALETTE[1], "width": 2}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "mean",
                "showlegend": False,
                "x": distinct,
                "y": compact(np.array(means)),
                "line": line,
            }
        )
    kind = "category" if not numeric else "log" if _spans_magnitudes(values) else "linear"
    ticks = (
        {"tickvals": distinct, "ticktext": list(map(brief, distinct))} if numeric and len(distinct) <= FEW else {}
    )
    layout = {
        "xaxis": {"type": kind, **ticks},
        "yaxis": {"title": {"text": in_chart(metric)}},
        "hovermode": "closest",
    }
    return {"title": in_chart(name), "traces": traces, "layout": layout}


def _scored(comparison: Comparison) -> list[RunRecord]:
    if comparison.objective is None:
        return []
    return [run for run in comparison.runs if run.state != "failed" and comparison.objective.metric in run.scores]


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _spans_magnitudes(values: Sequence[Any]) -> bool:
    return min(values) > 0 and max(values) >= LOG_RATIO * min(values)


def _colour(rank: float) -> str:
    """Return blue for the best (0), sand for the worst (1)."""
    parts = (round(best + rank * (worst - best)) for best, worst in zip(BEST, WORST, strict=True))
    return "rgb({}, {}, {})".format(*parts)
