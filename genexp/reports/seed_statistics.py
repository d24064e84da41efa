"""Runs that differ only in their seed, taken together: what they score, and whether two such groups differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from genexp.reports.config_diff import describe_settings, get_experiment_key
from genexp.run_dir.record import RunRecord

SIGNIFICANCE_LEVEL = 0.05  # a difference that noise alone makes as large less often than this is one


@dataclass(frozen=True)
class MeanScore:
    """A score over seeds."""

    mean: float
    error: float | None  # the mean's standard error; None for one seed
    n: int


@dataclass(frozen=True, eq=False)
class SeedGroup:
    """Runs of one experiment, a seed each."""

    runs: tuple[RunRecord, ...]
    label: str

    @cached_property
    def runs_by_seed(self) -> dict[int | None, RunRecord]:
        """Return seed → run, of those that have come to their end; of those that were stopped where none has."""
        for state in ("finished", "stopped"):
            by_seed = {run.seed: run for run in self.runs if run.state == state}
            if by_seed:
                return by_seed
        return {}

    def scores_by_seed(self, metric: str) -> dict[int | None, float]:
        """Return seed → score."""
        return {seed: run.scores[metric] for seed, run in self.runs_by_seed.items() if metric in run.scores}

    def mean_score(self, metric: str) -> MeanScore | None:
        """Return the mean score and its standard error."""
        values = list(self.scores_by_seed(metric).values())
        if not values:
            return None
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return MeanScore(statistics.fmean(values), error, len(values))


@dataclass(frozen=True)
class TTestResult:
    """Whether the first group differs from the second by more than the noise."""

    first: str
    second: str
    difference: float | None  # mean over the common seeds
    p: float | None
    seeds: int  # that both have
    differs: bool | None  # None where it cannot be told
    text: str


def build_seed_groups(runs: Iterable[RunRecord], parameters: Sequence[str]) -> list[SeedGroup]:
    """Return the runs in groups that differ only in seed, in order of their first."""
    members: dict[object, list[RunRecord]] = {}
    for run in runs:
        members.setdefault(get_experiment_key(run) if run.config else run.run_dir, []).append(run)
    return [
        SeedGroup(tuple(group), describe_settings(group[0], parameters) or group[0].model)
        for group in members.values()
    ]


def paired_t_test(first: SeedGroup, second: SeedGroup, metric: str) -> TTestResult:
    """Return what a paired t-test on the common seeds says. Groups of the same seeds see the same data order."""
    scores = first.scores_by_seed(metric), second.scores_by_seed(metric)
    seeds = [seed for seed in scores[0] if seed in scores[1]]
    differences = [scores[0][seed] - scores[1][seed] for seed in seeds]
    names = f"{first.label} and {second.label}"
    if len(seeds) < 2:
        common = f"{names} have {len(seeds) or 'no'} seed{'' if len(seeds) == 1 else 's'} in common"
        text = f"{common}: whether they differ by more than the noise takes two, better five"
        return TTestResult(first.label, second.label, None, None, len(seeds), None, text)
    difference = statistics.fmean(differences)
    p = _paired_t_test_p_value(differences)
    differs = p < SIGNIFICANCE_LEVEL
    text = (
        f"{first.label} against {second.label}: {difference:+.4g} {metric}, "
        f"{'more' if differs else 'no more'} than the noise "
        f"(paired t-test on {len(seeds)} common seeds, p = {p:.2g})"
    )
    return TTestResult(first.label, second.label, difference, p, len(seeds), differs, text)


def _paired_t_test_p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p of a paired t-test."""
    if len(set(differences)) == 1:  # no noise at all, where a t-test divides by it
        return 0.0 if differences[0] else 1.0
    from scipy.special import stdtr  # scipy.stats takes half a second to import

    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return float(2 * stdtr(len(differences) - 1, -abs(statistics.fmean(differences)) / error))
