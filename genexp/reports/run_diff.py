"""Differences between two runs: configuration, code, data, environment, and the first differing metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genexp.reports.config_diff import format_setting, get_settings
from genexp.run_dir.metrics import LoggedCurve, read_metrics
from genexp.run_dir.record import RunRecord, read_run

CODE_KEYS = ("git_commit", "genexp", "plugins")  # keys of the environment that identify the code
ValuePair = tuple[str | None, str | None]  # (left, right); None if the run does not have the key


@dataclass(frozen=True)
class MetricDifference:
    """First difference between the logged values of one metric in two runs."""

    metric: str  # split and name: "train/loss"
    step: int | None  # first common step with different values; None if all are equal
    values: tuple[float, float] | None  # (left, right) at `step`
    compared: int  # number of steps logged by both runs

    @property
    def is_different(self) -> bool:
        """True if the runs have different values at a common step."""
        return self.step is not None


@dataclass(frozen=True)
class RunDiff:
    """Differences between two runs."""

    runs: tuple[RunRecord, RunRecord]  # (left, right)
    # Section → key → different values. The sections are "configuration", "code" (CODE_KEYS of the environment),
    # "data" (settings of the data set, fingerprint of each split), "environment" and "result".
    sections: Mapping[str, Mapping[str, ValuePair]]
    metric_differences: tuple[MetricDifference, ...]  # one per common metric, earliest difference first

    @property
    def summary(self) -> str:
        """One-line description of the first difference between the metrics."""
        if not self.metric_differences:
            left_run, right_run = self.runs
            return f"no common metric: {_describe_metrics(left_run)} and {_describe_metrics(right_run)}"
        first = next((metric for metric in self.metric_differences if metric.is_different), None)
        if first is None:
            steps = max(metric.compared for metric in self.metric_differences)
            return f"metrics are equal at all {steps:,} common steps"
        assert first.values is not None
        left, right = first.values
        return f"metrics differ from step {first.step:,}: {first.metric} is {left:.9g} and {right:.9g}"


def diff_runs(left_dir: Path, right_dir: Path) -> RunDiff:
    """Return the differences between two runs.

    Raises DataError if a directory is not a run directory, or if its metrics log is damaged.
    """
    left, right = read_run(left_dir, str(left_dir)), read_run(right_dir, str(right_dir))
    environment = _diff_values(left.status.environment, right.status.environment)
    settings = _diff_values(get_settings(left), get_settings(right))
    dataset_settings = {key: values for key, values in settings.items() if key.startswith("dataset.")}
    sections = {
        "configuration": {key: values for key, values in settings.items() if key not in dataset_settings},
        "code": {key: values for key, values in environment.items() if key in CODE_KEYS},
        "data": dataset_settings | _diff_values(left.status.data, right.status.data),
        "environment": {key: values for key, values in environment.items() if key not in CODE_KEYS},
        "result": _diff_values(*({"state": run.state, "step": run.step} for run in (left, right))),
    }
    metrics = sorted(_diff_metrics(left, right), key=lambda metric: (metric.step is None, metric.step))
    return RunDiff((left, right), sections, tuple(metrics))


def _diff_metrics(left: RunRecord, right: RunRecord) -> Iterator[MetricDifference]:
    left_metrics, right_metrics = read_metrics(left.run_dir), read_metrics(right.run_dir)
    for split, curves in left_metrics.items():
        for name, left_curve in curves.items():
            right_curve = right_metrics.get(split, {}).get(name)
            if right_curve is not None:
                yield _diff_curves(f"{split}/{name}", left_curve, right_curve)


def _diff_curves(name: str, left: LoggedCurve, right: LoggedCurve) -> MetricDifference:
    steps, left_indices, right_indices = np.intersect1d(left.steps, right.steps, return_indices=True)
    left_values, right_values = left.values[left_indices], right.values[right_indices]
    different_indices = np.flatnonzero(
        ~np.equal(left_values, right_values) & ~(np.isnan(left_values) & np.isnan(right_values))
    )
    if not len(different_indices):
        return MetricDifference(name, None, None, len(steps))
    first = int(different_indices[0])
    return MetricDifference(
        name, int(steps[first]), (float(left_values[first]), float(right_values[first])), len(steps)
    )


def _diff_values(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, ValuePair]:
    """Return key → (left, right), for the keys whose formatted values differ, in their original order."""

    def get_text(side: Mapping[str, Any], key: str) -> str | None:
        return format_setting(side[key]) if key in side else None

    pairs = {key: (get_text(left, key), get_text(right, key)) for key in dict.fromkeys([*left, *right])}
    return {key: values for key, values in pairs.items() if values[0] != values[1]}


def _describe_metrics(run: RunRecord) -> str:
    names = [f"{split}/{name}" for split, curves in read_metrics(run.run_dir).items() for name in curves]
    return f"{run.name} ({run.model_name}) has {', '.join(names) or 'none'}"
