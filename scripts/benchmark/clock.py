"""Clock of all benchmark suites: wall time or processor time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
_selected_clock = ["wall"]


def select_clock(name: str) -> None:
    """Select the clock of `read_seconds`: "wall" or "processor", the processor time of this process.

    Processor time varies less on a machine that other processes use. With it torch uses one thread, because
    threads that wait for each other consume processor time too.
    """
    _selected_clock[0] = name
    if name == "processor":
        torch.set_num_threads(1)


def get_selected_clock() -> str:
    """Return the name of the selected clock, a key of CLOCKS."""
    return _selected_clock[0]


def read_seconds(device: torch.device | None = None) -> float:
    """Return the time of the selected clock, in seconds, once `device` has done its work.

    Only differences are meaningful.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return CLOCKS[_selected_clock[0]]()
