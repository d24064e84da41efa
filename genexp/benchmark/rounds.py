"""Fair timing on a noisy machine: rivals take turns, and only ratios of the same round are compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Comparison:
    """How one contestant did against another, over paired rounds."""

    task: str
    rival: str
    ours_per_second: float  # median
    rival_per_second: float  # median
    ratio: float  # median of ours / rival, round by round
    low: float  # smallest and largest ratio
    high: float
    unit: str

    def as_dict(self) -> dict[str, str | float]:
        """Return the figures for JSON."""
        return asdict(self)


def compete(
    task: str,
    ours: Callable[[], float],
    rivals: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    unit: str = "images/s",
) -> list[Comparison]:
    """Return a comparison with each rival. Each callable does the work once and returns its speed.

    A first round that nobody counts warms caches and allocators.
    """
    contestants = {"": ours, **rivals}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for counted in [False, *[True] * rounds]:
        for name, work in contestants.items():
            speed = work()
            if counted:
                speeds[name].append(speed)
    return [_compare(task, rival, speeds[""], speeds[rival], unit) for rival in rivals]


def _compare(task: str, rival: str, ours: list[float], theirs: list[float], unit: str) -> Comparison:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Comparison(
        task,
        rival,
        statistics.median(ours),
        statistics.median(theirs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        unit,
    )
