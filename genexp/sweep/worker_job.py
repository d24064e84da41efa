"""A job in a process that a launcher has started: it hears when the sweep stops, and takes its share of cores."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from genexp.sweep.job import Job, run_job
from genexp.sweep.stop_file import Gate
from genexp.training.stopping import StopRequest, stop_on_signals

LISTEN_SECONDS = 0.5
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_elsewhere(job: Job, gate: Gate, parent: int | None = None) -> signal.Signals | None:
    """Run a job as long as its sweep goes on; return the signal that stopped it, if one did.

    Where `parent` is given, the process that this one was started by, the job stops when that is no more.
    """
    stopped = None
    with stop_on_signals() as stop:
        if gate.is_open and not _is_orphan(parent):
            with _listening(gate, stop, parent):
                stopped = run_job(job, wanted=lambda: stop.signal is None)
    if _is_orphan(parent):
        os._exit(0)  # there is nobody to give it another job
    return stopped or stop.signal


def thread_settings(share: int) -> dict[str, str]:
    """Return the environment of a process that takes `share` cores. What the user has set there stays."""
    return {name: str(max(1, share)) for name in THREADS if name not in os.environ}


def ignore_interruptions() -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the one that has started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_orphan(parent: int | None) -> bool:
    return parent is not None and os.getppid() != parent


@contextmanager
def _listening(gate: Gate, stop: StopRequest, parent: int | None) -> Iterator[None]:
    """Tell the run in the block when it is to stop."""
    over = threading.Event()

    def listen() -> None:
        while not over.wait(LISTEN_SECONDS):
            if stop.signal is not None or gate.stops or _is_orphan(parent):
                # Again and again: a run that is only being built does not hear yet.
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=listen, name="sweep", daemon=True)
    if threading.current_thread() is threading.main_thread():  # elsewhere nobody would take the signal
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()
