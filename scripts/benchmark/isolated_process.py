"""Measuring in a process of its own, which has no memory but what the work takes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

from benchmark.clock import choose, chosen

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def apart(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Return what `work` returns in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=choose, initargs=(chosen(),)) as process:
        return process.submit(work, *args, **kwargs).result()
