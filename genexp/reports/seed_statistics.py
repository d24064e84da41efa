"""Runs that differ only in their seed, taken together: what they score, and whether two such groups differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from genexp.reports.config_diff import described, experiment
from genexp.run_dir.record import RunRecord

LEVEL = 0.05  # a difference that noise alone makes as large less often than this is one


@dataclass(frozen=True)
class Mean:
    """A score over seeds."""

    mean: float
    error: float | None  # the mean's standard error; None for one seed
    n: int


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one experiment, a seed each."""

    runs: tuple[RunRecord, ...]
    label: str

    @cached_property
    def counted(self) -> dict[int | None, RunRecord]:
        """Return seed → run, of those that have come to their end; of those that were stopped where none has."""
        for state in ("finished", "stopped"):
            found = {run.seed: run for run in self.runs if run.state == state}
            if found:
                return found
        return {}

    def values(self, metric: str) -> dict[int | None, float]:
        """Return seed → score."""
        return {seed: run.scores[metric] for seed, run in self.counted.items() if metric in run.scores}

    def mean(self, metric: str) -> Mean | None:
        """Return the mean score and its standard error."""
        values = list(self.values(metric).values())
        if not values:
            return None
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return Mean(statistics.fmean(values), error, len(values))


@dataclass(frozen=True)
class Verdict:
    """Whether the first group differs from the second by more than the noise."""

    first: str
    second: str
    difference: float | None  # mean over the common seeds
    p: float | None
    seeds: int  # that both have
    differs: bool | None  # None where it cannot be told
    text: str


def seed_groups(runs: Iterable[RunRecord], parameters: Sequence[str]) -> list[Group]:
    """Return the runs in groups that differ only in seed, in order of their first."""
    members: dict[object, list[RunRecord]] = {}
    for run in runs:
        members.setdefault(experiment(run) if run.config else run.run_dir, []).append(run)
    return [Group(tuple(group), described(group[0], parameters) or group[0].model) for group in members.values()]


def verdict(first: Group, second: Group, metric: str) -> Verdict:
    """Return what a paired t-test on the common seeds says. Groups of the same seeds see the same data order."""
    values = first.values(metric), second.values(metric)
    seeds = [seed for seed in values[0] if seed in values[1]]
    differences = [values[0][seed] - values[1][seed] for seed in seeds]
    names = f"{first.label} and {second.label}"
    if len(seeds) < 2:
        common = f"{names} have {len(seeds) or 'no'} seed{'' if len(seeds) == 1 else 's'} in common"
        text = f"{common}: whether they differ by more than the noise takes two, better five"
        return Verdict(first.label, second.label, None, None, len(seeds), None, text)
    difference = statistics.fmean(differences)
    p = _paired_p(differences)
    differs = p < LEVEL
    text = (
        f"{first.label} against {second.label}: {difference:+.4g} {metric}, "
        f"{'more' if differs else 'no more'} than the noise "
        f"(paired t-test on {len(seeds)} common seeds, p = {p:.2g})"
    )
    return Verdict(first.label, second.label, difference, p, len(seeds), differs, text)


def _paired_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of a paired t-test."""
    if len(set(differences)) == 1:  # no noise at all, where a t-test divides by it
        return 0.0 if differences[0] else 1.0
    from scipy.special import stdtr  # scipy.stats takes half a second to import

    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return float(2 * stdtr(len(differences) - 1, -abs(statistics.fmean(differences)) / error))
