"""Two runs against each other: what they were made of, and the first step where their metrics part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genexp.reports.config_diff import settings, shown
from genexp.run_dir.metrics import LoggedCurve
from genexp.run_dir.record import RunRecord, read_run

CODE = ("git_commit", "genexp")  # of the environment
Pair = tuple[str | None, str | None]  # None where a run has none


@dataclass(frozen=True)
class Parting:
    """Where a metric of two runs parts."""

    metric: str  # with its split: train/loss
    step: int | None  # the first with two values; None where all are the same
    values: tuple[float, float] | None  # there
    compared: int  # steps that both have

    @property
    def parts(self) -> bool:
        """Return whether there is a step with two values."""
        return self.step is not None


@dataclass(frozen=True)
class Difference:
    """What differs between two runs: key → the two values."""

    runs: tuple[RunRecord, RunRecord]
    configuration: Mapping[str, Pair]
    code: Mapping[str, Pair]
    data: Mapping[str, Pair]
    environment: Mapping[str, Pair]
    results: Mapping[str, Pair]  # state, steps
    metrics: tuple[Parting, ...]  # of all that both have, the first to part first

    @property
    def parting(self) -> Parting | None:
        """Return the metric that parts first."""
        return next((metric for metric in self.metrics if metric.parts), None)

    @property
    def verdict(self) -> str:
        """Return in a line where the metrics part."""
        if not self.metrics:
            left, right = self.runs
            return f"no metric in common: {_what(left)} and {_what(right)}"
        first = self.parting
        if first is None:
            steps = max(metric.compared for metric in self.metrics)
            return f"the metrics are the same at all {steps:,} steps that both have"
        assert first.values is not None
        mine, other = first.values
        return f"the metrics part at step {first.step:,}: {first.metric} is {mine:.9g} against {other:.9g}"


def differ(left: Path, right: Path) -> Difference:
    """Return what differs between the runs in two folders. Raises DataError where one holds none."""
    runs = read_run(left, str(left)), read_run(right, str(right))
    configurations = [settings(run) for run in runs]
    datasets = [
        {key: value for key, value in mine.items() if key.startswith("dataset.")} for mine in configurations
    ]
    others = [
        {key: value for key, value in mine.items() if not key.startswith("dataset.")} for mine in configurations
    ]
    checksums = [run.data_fingerprints for run in runs]
    environments = [run.environment for run in runs]
    results = [{"state": run.state, "step": run.step} for run in runs]
    return Difference(
        runs,
        _pairs(*others),
        {key: pair for key, pair in _pairs(*environments).items() if key in CODE},
        _pairs(*({**setting, **data} for setting, data in zip(datasets, checksums, strict=True))),
        {key: pair for key, pair in _pairs(*environments).items() if key not in CODE},
        _pairs(*results),
        tuple(sorted(_partings(*runs), key=lambda metric: (metric.step is None, metric.step))),
    )


def _partings(left: RunRecord, right: RunRecord) -> Iterator[Parting]:
    mine, theirs = left.load_metrics(), right.load_metrics()
    for split, columns in mine.items():
        for name, column in columns.items():
            other = theirs.get(split, {}).get(name)
            if other is not None:
                yield _parting(f"{split}/{name}", column, other)


def _parting(name: str, left: LoggedCurve, right: LoggedCurve) -> Parting:
    steps, mine, theirs = np.intersect1d(left.steps, right.steps, return_indices=True)
    values, others = left.values[mine], right.values[theirs]
    apart = np.flatnonzero(~np.equal(values, others) & ~(np.isnan(values) & np.isnan(others)))
    if not len(apart):
        return Parting(name, None, None, len(steps))
    first = int(apart[0])
    return Parting(name, int(steps[first]), (float(values[first]), float(others[first])), len(steps))


def _pairs(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Pair]:
    """Return the keys whose values differ, in order."""
    keys = dict.fromkeys([*left, *right])
    pairs = {key: tuple(shown(side[key]) if key in side else None for side in (left, right)) for key in keys}
    return {key: (mine, theirs) for key, (mine, theirs) in pairs.items() if mine != theirs}


def _what(run: RunRecord) -> str:
    names = [f"{split}/{name}" for split, columns in run.load_metrics().items() for name in columns]
    return f"{run.name} ({run.model}) has {', '.join(names) or 'none'}"
