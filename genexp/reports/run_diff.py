"""Two runs against each other: what they were made of, and the first step where their metrics part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genexp.reports.config_diff import format_setting, get_settings
from genexp.run_dir.metrics import LoggedCurve
from genexp.run_dir.record import RunRecord, read_run

CODE_KEYS = ("git_commit", "genexp")  # of the environment
ValuePair = tuple[str | None, str | None]  # None where a run has none


@dataclass(frozen=True)
class MetricDifference:
    """Where a metric of two runs parts."""

    metric: str  # with its split: train/loss
    step: int | None  # the first with two values; None where all are the same
    values: tuple[float, float] | None  # there
    compared: int  # steps that both have

    @property
    def is_different(self) -> bool:
        """Return whether there is a step with two values."""
        return self.step is not None


@dataclass(frozen=True)
class RunDiff:
    """What differs between two runs: key → the two values."""

    runs: tuple[RunRecord, RunRecord]
    configuration: Mapping[str, ValuePair]
    code: Mapping[str, ValuePair]
    data: Mapping[str, ValuePair]
    environment: Mapping[str, ValuePair]
    results: Mapping[str, ValuePair]  # state, steps
    metric_differences: tuple[MetricDifference, ...]  # of all that both have, the first to part first

    @property
    def first_metric_difference(self) -> MetricDifference | None:
        """Return the metric that parts first."""
        return next((metric for metric in self.metric_differences if metric.is_different), None)

    @property
    def summary(self) -> str:
        """Return in a line where the metrics part."""
        if not self.metric_differences:
            left, right = self.runs
            return f"no metric in common: {_describe_metrics(left)} and {_describe_metrics(right)}"
        first = self.first_metric_difference
        if first is None:
            steps = max(metric.compared for metric in self.metric_differences)
            return f"the metrics are the same at all {steps:,} steps that both have"
        assert first.values is not None
        one, other = first.values
        return f"the metrics part at step {first.step:,}: {first.metric} is {one:.9g} against {other:.9g}"


def diff_runs(left_dir: Path, right_dir: Path) -> RunDiff:
    """Return the differences between two runs. Raises DataError where a directory is not that of a run."""
    left, right = read_run(left_dir, str(left_dir)), read_run(right_dir, str(right_dir))
    environment = _diff_values(left.environment, right.environment)
    return RunDiff(
        runs=(left, right),
        configuration=_diff_values(_select_settings(left, False), _select_settings(right, False)),
        code={key: values for key, values in environment.items() if key in CODE_KEYS},
        data=_diff_values(
            {**_select_settings(left, True), **left.data_fingerprints},
            {**_select_settings(right, True), **right.data_fingerprints},
        ),
        environment={key: values for key, values in environment.items() if key not in CODE_KEYS},
        results=_diff_values({"state": left.state, "step": left.step}, {"state": right.state, "step": right.step}),
        metric_differences=tuple(
            sorted(_diff_metrics(left, right), key=lambda metric: (metric.step is None, metric.step))
        ),
    )


def _select_settings(run: RunRecord, of_dataset: bool) -> dict[str, Any]:
    """Return the settings of the data set, or all others."""
    return {key: value for key, value in get_settings(run).items() if key.startswith("dataset.") == of_dataset}


def _diff_metrics(left: RunRecord, right: RunRecord) -> Iterator[MetricDifference]:
    left_metrics, right_metrics = left.load_metrics(), right.load_metrics()
    for split, columns in left_metrics.items():
        for name, column in columns.items():
            other = right_metrics.get(split, {}).get(name)
            if other is not None:
                yield _diff_metric(f"{split}/{name}", column, other)


def _diff_metric(name: str, left: LoggedCurve, right: LoggedCurve) -> MetricDifference:
    steps, left_rows, right_rows = np.intersect1d(left.steps, right.steps, return_indices=True)
    left_values, right_values = left.values[left_rows], right.values[right_rows]
    different_rows = np.flatnonzero(
        ~np.equal(left_values, right_values) & ~(np.isnan(left_values) & np.isnan(right_values))
    )
    if not len(different_rows):
        return MetricDifference(name, None, None, len(steps))
    first = int(different_rows[0])
    return MetricDifference(
        name, int(steps[first]), (float(left_values[first]), float(right_values[first])), len(steps)
    )


def _diff_values(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, ValuePair]:
    """Return the keys whose values differ, in order."""
    keys = dict.fromkeys([*left, *right])
    pairs = {
        key: tuple(format_setting(side[key]) if key in side else None for side in (left, right)) for key in keys
    }
    return {
        key: (left_value, right_value)
        for key, (left_value, right_value) in pairs.items()
        if left_value != right_value
    }


def _describe_metrics(run: RunRecord) -> str:
    names = [f"{split}/{name}" for split, columns in run.load_metrics().items() for name in columns]
    return f"{run.name} ({run.model}) has {', '.join(names) or 'none'}"
