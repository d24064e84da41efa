"""Stopping cleanly: a signal, a spent time budget or a halt at an epoch ends a run after the step in hand."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# The last two are what schedulers of clusters announce the end of a job with.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether the run should end after this step, and why. `then` is called when a signal comes."""

    def __init__(
        self,
        time_budget: float | None = None,
        until_epoch: int | None = None,
        on_signal: Callable[[], None] | None = None,
    ) -> None:
        self.signal: signal.Signals | None = None
        self._until_epoch = until_epoch
        self._on_signal = on_signal
        self._deadline = None if time_budget is None else time.monotonic() + time_budget

    @property
    def is_out_of_time(self) -> bool:
        """Return whether the time budget is spent."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def should_interrupt(self, complete_epochs: int) -> bool:
        """Return whether the run should halt, to go on later, when so many epochs are complete."""
        return self.signal is not None or (self._until_epoch is not None and complete_epochs >= self._until_epoch)

    def set_signal(self, signum: int) -> None:
        """Note the signal that some process of the run was sent; 0 is none."""
        if signum:
            self.signal = signal.Signals(signum)

    def handle_signal(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: note the first. A second Ctrl-C is obeyed at once; schedulers say all things twice."""
        if self.signal is not None:
            if signum == signal.SIGINT:
                os._exit(128 + signum)
            return
        self.signal = signal.Signals(signum)
        if self._on_signal is not None:
            self._on_signal()


@contextmanager
def stop_on_signals(
    time_budget: float | None = None,
    *,
    until_epoch: int | None = None,
    on_signal: Callable[[], None] | None = None,
) -> Iterator[StopRequest]:
    """Turn signals into a request while the block runs (only the main thread may do so)."""
    request = StopRequest(time_budget, until_epoch, on_signal)
    signums = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
    previous_handlers = {signum: signal.signal(signum, request.handle_signal) for signum in signums}
    try:
        yield request
    finally:
        for number, handler in previous_handlers.items():
            if handler is not None:  # one of a library in C, which cannot be put back
                signal.signal(number, handler)
