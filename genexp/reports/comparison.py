"""Runs beside each other: in which settings they differ, what they score, and which is ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genexp.errors import DataError
from genexp.reports.config_diff import find_differing_keys
from genexp.reports.seed_statistics import SeedGroup, TTestResult, build_seed_groups, paired_t_test
from genexp.run_dir.record import RunRecord, find_runs


@dataclass(frozen=True)
class Objective:
    """What runs are sorted by."""

    metric: str
    direction: str  # min or max

    def cost(self, value: float | None) -> float:
        """Return a number that is lower for a better value, and highest for none."""
        if value is None:
            return math.inf
        return -value if self.direction == "max" else value


@dataclass(frozen=True)
class Comparison:
    """All that can be said of some runs together. `runs` and `groups` are sorted, the best first."""

    runs: tuple[RunRecord, ...]
    parameters: tuple[str, ...]  # keys that differ, the seed left out
    objective: Objective | None  # None where the runs have no metric in common
    metrics: tuple[str, ...]  # the objective first
    groups: tuple[SeedGroup, ...]
    t_test: TTestResult | None  # None where no two groups were run with several seeds
    notes: tuple[str, ...] = ()

    @property
    def has_multiple_seeds(self) -> bool:
        """Return whether any runs differ only in their seed."""
        return any(len(group.runs) > 1 for group in self.groups)

    @property
    def failed_runs(self) -> tuple[RunRecord, ...]:
        """Return the runs that ended with an error."""
        return tuple(run for run in self.runs if run.error)


def compare(directories: Sequence[Path]) -> Comparison:
    """Return the comparison of all runs in folders: each a run's, a sweep's, or one that holds such.

    Raises DataError where a folder holds no run. A run that failed or was killed is one like the others.
    """
    return compare_runs(find_runs(directories))


def compare_runs(runs: Sequence[RunRecord]) -> Comparison:
    """Return the comparison of runs."""
    parameters = find_differing_keys(runs)
    objective, notes = _select_objective(runs)
    metrics = _select_metrics(runs, objective)

    def get_sort_key(run: RunRecord) -> tuple[bool, str, float]:
        run_objective = objective or Objective(run.objective or "", run.direction)
        value = run.scores.get(run_objective.metric)
        return (
            run.state == "failed" or value is None,
            "" if objective else run_objective.metric,
            run_objective.cost(value),
        )

    sorted_runs = sorted(runs, key=get_sort_key)
    groups = build_seed_groups(sorted_runs, parameters)
    t_test = None
    if objective is not None:
        metric = objective.metric
        means = {group: mean for group in groups if (mean := group.mean_score(metric)) is not None}
        groups.sort(key=lambda group: objective.cost(means[group].mean if group in means else None))
        if len(means) > 1 and max(mean.n for mean in means.values()) > 1:
            t_test = paired_t_test(groups[0], groups[1], metric)
    return Comparison(tuple(sorted_runs), parameters, objective, metrics, tuple(groups), t_test, tuple(notes))


def check_comparable(comparison: Comparison) -> None:
    """Raise DataError for runs of which no two have a metric in common."""
    scored_runs = [run for run in comparison.runs if run.scores]
    seen_metrics: set[str] = set()
    for run in scored_runs:
        if seen_metrics & run.scores.keys():
            return
        seen_metrics |= run.scores.keys()
    if len(scored_runs) > 1:
        summary = " and ".join(f"{run.name} ({run.model}: {', '.join(run.scores)})" for run in scored_runs)
        raise DataError(f"{summary} have no metric in common; give runs of the same task")


def _select_objective(runs: Sequence[RunRecord]) -> tuple[Objective | None, list[str]]:
    """Return what all runs that have scores can be sorted by, and what there is to say about it."""
    scored_runs = [run for run in runs if run.scores]
    if not scored_runs:
        return None, ["no run has a score yet: nothing to sort by"]
    objectives = dict.fromkeys((run.objective, run.direction) for run in scored_runs if run.objective)
    # A run that was killed before its first evaluation has training metrics only: it need not be sorted.
    evaluated_runs = [
        run for run in scored_runs if not all(name.startswith("train/") for name in run.scores)
    ] or scored_runs
    common_metrics = set.intersection(*(set(run.scores) for run in evaluated_runs))
    for prefix in ("", "train/"):
        for metric, direction in objectives:
            if f"{prefix}{metric}" in common_metrics:
                return Objective(f"{prefix}{metric}", direction), []
    models = dict.fromkeys(f"{run.model} ({run.objective})" for run in evaluated_runs)
    return None, [f"{' and '.join(models)} have no objective in common: each is sorted by its own"]


def _select_metrics(runs: Sequence[RunRecord], objective: Objective | None) -> tuple[str, ...]:
    names = list(dict.fromkeys(name for run in runs for name in run.scores))
    test_metrics = [name for name in names if not name.startswith("train/")]
    objective_metrics = (
        [objective.metric] if objective else list(dict.fromkeys(run.objective for run in runs if run.objective))
    )
    return tuple(dict.fromkeys([name for name in objective_metrics if name in names] + (test_metrics or names)))
