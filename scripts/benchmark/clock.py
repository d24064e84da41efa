"""The clock that all suites read."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
_selected_clock = ["wall"]


def select_clock(name: str) -> None:
    """Let `now` read the clock on the wall, or the processor time of this process.

    On a machine that others are busy on too, the latter is the steadier one, of one thread: threads that wait
    for each other spend it as well.
    """
    _selected_clock[0] = name
    if name == "processor":
        torch.set_num_threads(1)


def get_selected_clock() -> str:
    """Return which one that is."""
    return _selected_clock[0]


def read_seconds() -> float:
    """Return seconds."""
    return CLOCKS[_selected_clock[0]]()
