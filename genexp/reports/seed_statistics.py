"""Groups of runs that differ only in their seed: mean scores, standard errors, and paired t-test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from genexp.reports.config_diff import describe_settings, get_seed_group_key
from genexp.run_dir.record import RunRecord

SIGNIFICANCE_LEVEL = 0.05  # a p-value below this counts as a difference


@dataclass(frozen=True)
class MeanScore:
    """Mean of a score over seeds."""

    mean: float
    error: float | None  # standard error of the mean; None for one seed
    n: int  # number of seeds


@dataclass(frozen=True, eq=False)
class SeedGroup:
    """Runs that differ only in their seed."""

    runs: tuple[RunRecord, ...]
    label: str  # differing settings, such as "optimizer.lr=0.001", or the model's name if there are none

    @cached_property
    def runs_by_seed(self) -> dict[int | None, RunRecord]:
        """Seed → run, for the finished runs, or for the stopped runs if none finished.

        Among several runs with one seed, the last of `runs` is kept.
        """
        for state in ("finished", "stopped"):
            by_seed = {run.seed: run for run in self.runs if run.state == state}
            if by_seed:
                return by_seed
        return {}

    def scores_by_seed(self, metric: str) -> dict[int | None, float]:
        """Return seed → score, for the runs of `runs_by_seed` that have the metric."""
        return {
            seed: run.latest_metrics[metric]
            for seed, run in self.runs_by_seed.items()
            if metric in run.latest_metrics
        }

    def mean_score(self, metric: str) -> MeanScore | None:
        """Return the mean score over seeds with its standard error, or None without scores."""
        values = list(self.scores_by_seed(metric).values())
        if not values:
            return None
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return MeanScore(statistics.fmean(values), error, len(values))


@dataclass(frozen=True)
class TTestResult:
    """Paired t-test of one metric between two seed groups. Without two common seeds, its results are None."""

    first: str  # label of the first group
    second: str  # label of the second group
    difference: float | None  # mean over the common seeds of first − second, in units of the metric
    p: float | None  # two-sided p-value
    seeds: int  # number of common seeds
    differs: bool | None  # True if p < SIGNIFICANCE_LEVEL
    text: str  # result as a sentence


def build_seed_groups(runs: Iterable[RunRecord], differing_keys: Sequence[str]) -> list[SeedGroup]:
    """Return the groups of runs that differ only in their seed, in order of first appearance.

    `differing_keys` are the dotted keys that make up the labels. A run without a configuration is its own group.
    """
    runs_by_key: dict[object, list[RunRecord]] = {}
    for run in runs:
        runs_by_key.setdefault(get_seed_group_key(run) if run.config else run.run_dir, []).append(run)
    return [
        SeedGroup(tuple(group), describe_settings(group[0], differing_keys) or group[0].model_name)
        for group in runs_by_key.values()
    ]


def paired_t_test(first: SeedGroup, second: SeedGroup, metric: str) -> TTestResult:
    """Return the paired t-test on the common seeds of two groups.

    Pairing is valid because runs with the same seed use the same order of the data.
    """
    scores = first.scores_by_seed(metric), second.scores_by_seed(metric)
    seeds = [seed for seed in scores[0] if seed in scores[1]]
    differences = [scores[0][seed] - scores[1][seed] for seed in seeds]
    names = f"{first.label} and {second.label}"
    if len(seeds) < 2:
        common_seeds_text = f"{names}: {len(seeds) or 'no'} common seed{'' if len(seeds) == 1 else 's'}"
        text = f"{common_seeds_text}. A paired t-test requires at least two, better five."
        return TTestResult(first.label, second.label, None, None, len(seeds), None, text)
    difference = statistics.fmean(differences)
    p = _paired_t_test_p_value(differences)
    differs = p < SIGNIFICANCE_LEVEL
    text = (
        f"{first.label} minus {second.label}: {difference:+.4g} {metric}, "
        f"{'significant' if differs else 'not significant'} "
        f"(paired t-test on {len(seeds)} common seeds, p = {p:.2g})"
    )
    return TTestResult(first.label, second.label, difference, p, len(seeds), differs, text)


def _paired_t_test_p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired t-test."""
    if len(set(differences)) == 1:  # zero variance, by which the t statistic would divide
        return 0.0 if differences[0] else 1.0
    from scipy.special import stdtr  # scipy.stats takes half a second to import

    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return float(2 * stdtr(len(differences) - 1, -abs(statistics.fmean(differences)) / error))
