"""Stopping cleanly: a signal or a spent time budget ends a run after the step in hand."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the run should end after this step, and why."""

    def __init__(self, time_budget: float | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._deadline = None if time_budget is None else time.monotonic() + time_budget

    @property
    def out_of_time(self) -> bool:
        """Return whether the time budget is spent."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: note the first, obey the second at once."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def stop_on_signals(time_budget: float | None) -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request while the block runs (only the main thread may do so)."""
    request = StopRequest(time_budget)
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, request.receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
