"""Measurement in a new process, whose memory holds only what the measured function allocates."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

from benchmark.clock import get_selected_clock, select_clock

P = ParamSpec("P")
T = TypeVar("T")


def run_in_new_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `function(*args, **kwargs)` from a new process with the same clock."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=select_clock, initargs=(get_selected_clock(),)) as process:
        return process.submit(function, *args, **kwargs).result()
