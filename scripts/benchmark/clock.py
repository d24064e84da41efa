"""The clock that all suites read."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
_chosen = ["wall"]


def choose(name: str) -> None:
    """Let `now` read the clock on the wall, or the processor time of this process.

    On a machine that others are busy on too, the latter is the steadier one, of one thread: threads that wait
    for each other spend it as well.
    """
    _chosen[0] = name
    if name == "processor":
        torch.set_num_threads(1)


def chosen() -> str:
    """Return which one that is."""
    return _chosen[0]


def now() -> float:
    """Return seconds."""
    return CLOCKS[_chosen[0]]()
