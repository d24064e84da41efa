"""Graceful stop of a run on a signal, after a time budget, or at an epoch.

The run ends after the current step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Cluster schedulers announce the end of a job with SIGUSR1 or SIGUSR2. SIGPIPE arrives when the program that reads
# the output has ended (`genexp … | head -1`). Windows has none of them, and has SIGBREAK.
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGBREAK", "SIGPIPE")
    if hasattr(signal, name)
)


class StopRequest:
    """Conditions under which a run ends after the current step: a signal, a time budget, an epoch.

    `time_budget` is in seconds from now. `on_signal` is called at the first signal.
    """

    def __init__(
        self,
        time_budget: float | None = None,
        until_epoch: int | None = None,
        on_signal: Callable[[], None] | None = None,
    ) -> None:
        self.received_signal: signal.Signals | None = None
        self._until_epoch = until_epoch
        self._on_signal = on_signal
        self._deadline = None if time_budget is None else time.monotonic() + time_budget

    @property
    def is_out_of_time(self) -> bool:
        """Whether the time budget is used up."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def should_interrupt(self, completed_epochs: int) -> bool:
        """Return whether the run should stop after `completed_epochs` epochs, to be resumed later."""
        return (
            self.received_signal is not None
            or self.is_out_of_time
            or (self._until_epoch is not None and completed_epochs >= self._until_epoch)
        )

    def set_signal(self, signum: int) -> None:
        """Set the signal that a process of the run received. 0 means no signal."""
        if signum:
            self.received_signal = signal.Signals(signum)

    def handle_signal(self, signum: int, frame: FrameType | None) -> None:
        """Request a stop at the first signal, and exit at once at a later SIGINT (Ctrl-C).

        Other repeated signals are ignored, because schedulers send a signal twice.
        """
        if self.received_signal is not None:
            if signum == signal.SIGINT:
                os._exit(128 + signum)
            return
        self.received_signal = signal.Signals(signum)
        if self._on_signal is not None:
            self._on_signal()


@contextmanager
def stop_on_signals(
    time_budget: float | None = None,
    *,
    until_epoch: int | None = None,
    on_signal: Callable[[], None] | None = None,
) -> Iterator[StopRequest]:
    """Yield a request that the STOP_SIGNALS trigger while the block runs.

    Outside the main thread, where Python forbids signal handlers, no signal is handled.
    """
    request = StopRequest(time_budget, until_epoch, on_signal)
    signums = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
    previous_handlers = {signum: signal.signal(signum, request.handle_signal) for signum in signums}
    try:
        yield request
    finally:
        for signum, handler in previous_handlers.items():
            if handler is not None:  # None: installed by C code, cannot be restored from Python
                signal.signal(signum, handler)
