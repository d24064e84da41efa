"""Fair measurement on a noisy machine: rivals take turns, and only ratios of the same round are compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class PairedComparison:
    """How one contestant did against another, over paired rounds."""

    task: str
    rival: str
    ours: float  # median
    theirs: float  # median
    ratio: float  # median of ours / theirs, round by round
    low: float  # smallest and largest ratio
    high: float
    unit: str  # of both figures; ahead is who has more per second, or fewer seconds or bytes

    def as_dict(self) -> dict[str, str | float]:
        """Return the figures for JSON."""
        return asdict(self)


def run_paired_rounds(
    task: str,
    ours: Callable[[], float],
    rivals: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    unit: str = "images/s",
) -> list[PairedComparison]:
    """Return a comparison with each rival. Each callable does the work once and returns its figure.

    A first round that nobody counts warms caches and allocators.
    """
    contenders = {"": ours, **rivals}
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for is_counted in [False, *[True] * rounds]:
        for name, measure in contenders.items():
            figure = run_in_thread(measure)
            if is_counted:
                figures[name].append(figure)
    return [compare(task, rival, figures[""], figures[rival], unit=unit) for rival in rivals]


def run_in_thread(function: Callable[[], T]) -> T:
    """Return what `work` returns in a thread of its own.

    How a thread computes with tiny numbers is left to those that it begins, among them torch's: what one
    contestant chooses must not reach the next. Nor may there be idle threads of another: OpenMP counts them all,
    and lets them sleep after each loop where they are more than cores. So what prepares work runs here as well.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def compare(
    task: str, rival: str, ours: Sequence[float], theirs: Sequence[float], *, unit: str
) -> PairedComparison:
    """Return the comparison of figures that belong together in pairs."""
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
    )
