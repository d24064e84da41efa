"""Runs beside each other: in which settings they differ, what they score, and which is ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genexp.errors import DataError
from genexp.reports.config_diff import differing
from genexp.reports.seed_statistics import Group, Verdict, seed_groups, verdict
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
    groups: tuple[Group, ...]
    verdict: Verdict | None  # None where no two groups were run with several seeds
    notes: tuple[str, ...] = ()

    @property
    def has_seeds(self) -> bool:
        """Return whether any runs differ only in their seed."""
        return any(len(group.runs) > 1 for group in self.groups)

    @property
    def failed(self) -> tuple[RunRecord, ...]:
        """Return the runs that ended with an error."""
        return tuple(run for run in self.runs if run.error)


def compare(folders: Sequence[Path]) -> Comparison:
    """Return the comparison of all runs in folders: each a run's, a sweep's, or one that holds such.

    Raises DataError where a folder holds no run. A run that failed or was killed is one like the others.
    """
    return compare_runs(find_runs(folders))


def compare_runs(runs: Sequence[RunRecord]) -> Comparison:
    """Return the comparison of runs."""
    parameters = differing(runs)
    objective, notes = _objective(runs)
    metrics = _metrics(runs, objective)

    def rank(run: RunRecord) -> tuple[bool, str, float]:
        mine = objective or Objective(run.objective or "", run.direction)
        value = run.scores.get(mine.metric)
        return run.state == "failed" or value is None, "" if objective else mine.metric, mine.cost(value)

    ordered = sorted(runs, key=rank)
    groups = seed_groups(ordered, parameters)
    found = None
    if objective is not None:
        metric = objective.metric
        means = {group: mean for group in groups if (mean := group.mean(metric)) is not None}
        groups.sort(key=lambda group: objective.cost(means[group].mean if group in means else None))
        if len(means) > 1 and max(mean.n for mean in means.values()) > 1:
            found = verdict(groups[0], groups[1], metric)
    return Comparison(tuple(ordered), parameters, objective, metrics, tuple(groups), found, tuple(notes))


def refuse_incomparable(comparison: Comparison) -> None:
    """Raise DataError for runs of which no two have a metric in common."""
    scored = [run for run in comparison.runs if run.scores]
    seen: set[str] = set()
    for run in scored:
        if seen & run.scores.keys():
            return
        seen |= run.scores.keys()
    if len(scored) > 1:
        words = " and ".join(f"{run.name} ({run.model}: {', '.join(run.scores)})" for run in scored)
        raise DataError(f"{words} have no metric in common; give runs of the same task")


def _objective(runs: Sequence[RunRecord]) -> tuple[Objective | None, list[str]]:
    """Return what all runs that have scores can be sorted by, and what there is to say about it."""
    scored = [run for run in runs if run.scores]
    if not scored:
        return None, ["no run has a score yet: nothing to sort by"]
    wanted = dict.fromkeys((run.objective, run.direction) for run in scored if run.objective)
    # A run that was killed before its first evaluation has training metrics only: it need not be sorted.
    judged = [run for run in scored if not all(name.startswith("train/") for name in run.scores)] or scored
    common = set.intersection(*(set(run.scores) for run in judged))
    for prefix in ("", "train/"):
        for metric, direction in wanted:
            if f"{prefix}{metric}" in common:
                return Objective(f"{prefix}{metric}", direction), []
    models = dict.fromkeys(f"{run.model} ({run.objective})" for run in judged)
    return None, [f"{' and '.join(models)} have no objective in common: each is sorted by its own"]


def _metrics(runs: Sequence[RunRecord], objective: Objective | None) -> tuple[str, ...]:
    names = list(dict.fromkeys(name for run in runs for name in run.scores))
    tested = [name for name in names if not name.startswith("train/")]
    own = [objective.metric] if objective else list(dict.fromkeys(run.objective for run in runs if run.objective))
    return tuple(dict.fromkeys([name for name in own if name in names] + (tested or names)))
