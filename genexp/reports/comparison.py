"""Comparison of runs: differing settings, scores, ranking, and a significance test."""

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
    """Metric that runs are sorted by."""

    metric: str  # "train/NAME" for a training metric, else a test metric
    direction: str  # "min" or "max"

    def cost(self, value: float | None) -> float:
        """Return a number to sort by: lower for a better value, infinity for None."""
        if value is None:
            return math.inf
        return -value if self.direction == "max" else value


@dataclass(frozen=True)
class Comparison:
    """Result of comparing runs."""

    runs: tuple[RunRecord, ...]  # best first; failed runs and runs without a score last
    differing_keys: tuple[str, ...]  # dotted configuration keys that differ between runs, without the seed
    objective: Objective | None  # None if the runs have no objective in common
    metrics: tuple[str, ...]  # objective first
    groups: tuple[SeedGroup, ...]  # best mean score first
    # Test between the two best groups. None with fewer than two scored groups, or one seed in each group.
    t_test: TTestResult | None
    notes: tuple[str, ...] = ()  # messages for the user

    @property
    def has_multiple_seeds(self) -> bool:
        """True if at least two runs differ only in their seed."""
        return any(len(group.runs) > 1 for group in self.groups)

    @property
    def failed_runs(self) -> tuple[RunRecord, ...]:
        """Runs that ended with an error."""
        return tuple(run for run in self.runs if run.error)


def compare(directories: Sequence[Path]) -> Comparison:
    """Return the comparison of all runs found in `directories`, searched recursively.

    Each directory is a run directory, a sweep directory, or a parent of such directories. Runs that failed or
    were killed are included.

    Raises DataError if a directory does not exist or contains no run.
    """
    return compare_runs(find_runs(directories))


def compare_runs(runs: Sequence[RunRecord]) -> Comparison:
    """Return the comparison of `runs`."""
    differing_keys = find_differing_keys(runs)
    objective, notes = _select_objective(runs)
    metrics = _select_metrics(runs, objective)

    def get_sort_key(run: RunRecord) -> tuple[bool, str, float]:
        run_objective = objective or Objective(run.objective or "", run.direction)
        value = run.latest_metrics.get(run_objective.metric)
        return (
            run.state == "failed" or value is None,
            "" if objective else run_objective.metric,
            run_objective.cost(value),
        )

    sorted_runs = sorted(runs, key=get_sort_key)
    groups = build_seed_groups(sorted_runs, differing_keys)
    t_test = None
    if objective is not None:
        metric = objective.metric
        means = {group: mean for group in groups if (mean := group.mean_score(metric)) is not None}
        groups.sort(key=lambda group: objective.cost(means[group].mean if group in means else None))
        if len(means) > 1 and max(mean.n for mean in means.values()) > 1:
            t_test = paired_t_test(groups[0], groups[1], metric)
    return Comparison(tuple(sorted_runs), differing_keys, objective, metrics, tuple(groups), t_test, tuple(notes))


def check_comparable(comparison: Comparison) -> None:
    """Raise DataError if several runs have scores but no two of them share a metric."""
    scored_runs = [run for run in comparison.runs if run.latest_metrics]
    seen_metrics: set[str] = set()
    for run in scored_runs:
        if seen_metrics & run.latest_metrics.keys():
            return
        seen_metrics |= run.latest_metrics.keys()
    if len(scored_runs) > 1:
        summary = " and ".join(
            f"{run.name} ({run.model_name}: {', '.join(run.latest_metrics)})" for run in scored_runs
        )
        raise DataError(f"no common metric: {summary}. Use runs of the same task.")


def _select_objective(runs: Sequence[RunRecord]) -> tuple[Objective | None, list[str]]:
    """Return the objective common to all runs with scores, if any, and notes for the user.

    Test metrics take precedence over training metrics.
    """
    scored_runs = [run for run in runs if run.latest_metrics]
    if not scored_runs:
        return None, ["no run has a score yet: nothing to sort by"]
    objectives = dict.fromkeys((run.objective, run.direction) for run in scored_runs if run.objective)
    # Runs killed before their first evaluation have only training metrics. They must not restrict the choice.
    evaluated_runs = [
        run for run in scored_runs if not all(name.startswith("train/") for name in run.latest_metrics)
    ] or scored_runs
    common_metrics = set.intersection(*(set(run.latest_metrics) for run in evaluated_runs))
    for prefix in ("", "train/"):
        for metric, direction in objectives:
            if f"{prefix}{metric}" in common_metrics:
                return Objective(f"{prefix}{metric}", direction), []
    models = dict.fromkeys(f"{run.model_name} ({run.objective})" for run in evaluated_runs)
    return None, [f"{' and '.join(models)} have no objective in common: each is sorted by its own"]


def _select_metrics(runs: Sequence[RunRecord], objective: Objective | None) -> tuple[str, ...]:
    names = list(dict.fromkeys(name for run in runs for name in run.latest_metrics))
    test_metrics = [name for name in names if not name.startswith("train/")]
    objective_metrics = (
        [objective.metric] if objective else list(dict.fromkeys(run.objective for run in runs if run.objective))
    )
    return tuple(dict.fromkeys([name for name in objective_metrics if name in names] + (test_metrics or names)))
