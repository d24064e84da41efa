"""Paired measurement on a noisy machine: contenders alternate, and ratios are taken within each round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class PairedComparison:
    """Measured values of genexp and of one rival over paired rounds."""

    task: str  # description of the measured work
    rival: str  # name of the other contender
    ours: float  # median of genexp
    theirs: float  # median of the rival
    ratio: float  # median of ours / theirs over the rounds
    low: float  # smallest ratio
    high: float  # largest ratio
    unit: str  # of `ours` and `theirs`; more is better for rates, less for seconds and bytes
    measure: str = ""  # what is measured, where a suite measures several things of the same work

    def as_dict(self) -> dict[str, str | float]:
        """Return the fields for JSON."""
        return asdict(self)

    @property
    def gains(self) -> tuple[float, float, float]:
        """Median, lowest and highest factor by which genexp is better: faster, or smaller."""
        if self.unit.endswith("/s"):
            return self.ratio, self.low, self.high
        return 1 / self.ratio, 1 / self.high, 1 / self.low


def run_paired_rounds(
    task: str,
    ours: Callable[[], float],
    rivals: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    unit: str = "images/s",
) -> list[PairedComparison]:
    """Return a comparison with each rival. Each callable runs the task once and returns its value.

    An additional first round warms caches and allocators and is not counted.
    """
    contenders = {"": ours, **rivals}
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for is_counted in [False, *[True] * rounds]:
        for name, measure in contenders.items():
            value = run_in_thread(measure)
            if is_counted:
                values[name].append(value)
    return [compare(task, rival, values[""], values[rival], unit=unit) for rival in rivals]


def run_in_thread(function: Callable[[], T]) -> T:
    """Return `function()` from a new thread, so that contenders do not affect each other.

    The threads that a thread starts, torch's included, inherit its treatment of denormal numbers. A contender that
    flushes them to zero must not affect the next. OpenMP counts idle threads of earlier contenders as well, and
    lets its threads sleep after each loop if there are more threads than cores. Preparations of a task therefore
    run in a new thread as well.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def compare(
    task: str, rival: str, ours: Sequence[float], theirs: Sequence[float], *, unit: str, measure: str = ""
) -> PairedComparison:
    """Return the comparison of paired values; index i of both sequences belongs to round i."""
    ratios = [our_value / their_value for our_value, their_value in zip(ours, theirs, strict=True)]
    return PairedComparison(
        task,
        rival,
        statistics.median(ours),
        statistics.median(theirs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        unit,
        measure,
    )
