"""A job in a process that a launcher has started: it hears when the sweep stops, and takes its share of cores."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from genexp.sweep.job import Job, run_job
from genexp.sweep.stop_file import StopFile
from genexp.training.stopping import StopRequest, stop_on_signals

POLL_SECONDS = 0.5
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_in_worker(job: Job, stop_file: StopFile, parent_pid: int | None = None) -> signal.Signals | None:
    """Run a job as long as its sweep goes on; return the signal that stopped it, if one did.

    Where `parent` is given, the process that this one was started by, the job stops when that is no more.
    """
    stop_signal = None
    with stop_on_signals() as stop:
        if stop_file.allows_new_jobs and not _is_orphan(parent_pid):
            with _poll_stop_file(stop_file, stop, parent_pid):
                stop_signal = run_job(job, should_run=lambda: stop.signal is None)
    if _is_orphan(parent_pid):
        os._exit(0)  # there is nobody to give it another job
    return stop_signal or stop.signal


def build_thread_env(n_cores: int) -> dict[str, str]:
    """Return the environment of a process that takes `share` cores. What the user has set there stays."""
    return {name: str(max(1, n_cores)) for name in THREAD_VARIABLES if name not in os.environ}


def ignore_sigint() -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the one that has started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_orphan(parent_pid: int | None) -> bool:
    return parent_pid is not None and os.getppid() != parent_pid


@contextmanager
def _poll_stop_file(stop_file: StopFile, stop: StopRequest, parent_pid: int | None) -> Iterator[None]:
    """Tell the run in the block when it is to stop."""
    done = threading.Event()

    def poll() -> None:
        while not done.wait(POLL_SECONDS):
            if stop.signal is not None or stop_file.should_stop or _is_orphan(parent_pid):
                # Again and again: a run that is only being built does not hear yet.
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=poll, name="sweep", daemon=True)
    if threading.current_thread() is threading.main_thread():  # elsewhere nobody would take the signal
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
