"""Job of a sweep in a worker process: stop file, orphan detection and CPU threads."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genexp.run_dir.manifest import SweepManifest
from genexp.run_dir.paths import STOP_FILE
from genexp.sweep.job import Job, run_job
from genexp.training.stopping import StopRequest, stop_on_signals

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

POLL_SECONDS = 0.5
# Environment variables that set the number of CPU threads.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class StopFile:
    """Stop file of one sweep, shared by all its processes and machines, and the rule for starting jobs.

    Picklable: launchers send it to worker processes.
    """

    sweep_dir: Path
    started_at: float  # POSIX seconds; status files older than this belong to an earlier attempt
    fail_fast: bool  # a failed job prevents further jobs from starting

    @property
    def should_stop(self) -> bool:
        """True if running jobs should save a checkpoint and exit."""
        return (self.sweep_dir / STOP_FILE).exists()

    @property
    def allows_new_jobs(self) -> bool:
        """False once the sweep was stopped, or a job failed under `fail_fast`."""
        return not self.should_stop and not (self.fail_fast and self._has_failed_job())

    def create(self) -> None:
        """Create the stop file: running jobs stop, and no further job starts."""
        (self.sweep_dir / STOP_FILE).touch()

    def remove(self) -> None:
        """Remove the stop file of an earlier attempt, if there is one."""
        (self.sweep_dir / STOP_FILE).unlink(missing_ok=True)

    def _has_failed_job(self) -> bool:
        statuses = SweepManifest(self.sweep_dir).read_statuses(self.started_at)
        return any(status.state == "failed" for status in statuses.values())


def run_in_worker(job: Job, stop_file: StopFile, parent_pid: int | None = None) -> signal.Signals | None:
    """Run `job` until it ends or the sweep is stopped; return the signal that stopped it, or None.

    With `parent_pid`, the job also stops once that process is no longer the parent. This process then exits.
    """
    stop_signal = None
    with stop_on_signals() as stop:
        if stop_file.allows_new_jobs and not _is_orphan(parent_pid):
            with _poll_stop_file(stop_file, stop, parent_pid):
                stop_signal = run_job(job, should_run=lambda: stop.received_signal is None)
    if _is_orphan(parent_pid):
        os._exit(0)  # no parent is left that could send another job
    return stop_signal or stop.received_signal


def build_thread_env(n_cores: int) -> dict[str, str]:
    """Return the environment variables that limit a process to `n_cores` threads, or to 1 if it is 0.

    Variables that the user has set are not changed.
    """
    return {name: str(max(1, n_cores)) for name in THREAD_VARIABLES if name not in os.environ}


def ignore_sigint() -> None:
    """Ignore SIGINT in a worker. Ctrl-C reaches all processes of a terminal, and the launcher handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def count_cpu_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _send_sigterm_to_self() -> None:
    """Send SIGTERM to this process. On Windows, `os.kill` would end it without its signal handler."""
    if os.name == "nt":
        signal.raise_signal(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def _is_orphan(parent_pid: int | None) -> bool:
    return parent_pid is not None and os.getppid() != parent_pid


@contextmanager
def _poll_stop_file(stop_file: StopFile, stop: StopRequest, parent_pid: int | None) -> Iterator[None]:
    """Send SIGTERM to this process once the sweep stops, the parent has ended, or `stop` received a signal.

    A thread checks this every `POLL_SECONDS` during the block.
    """
    stop_event = threading.Event()

    def poll() -> None:
        while not stop_event.wait(POLL_SECONDS):
            if stop.received_signal is not None or stop_file.should_stop or _is_orphan(parent_pid):
                # Repeated, because a run that is still being built has not installed its signal handler.
                _send_sigterm_to_self()

    thread = threading.Thread(target=poll, name="sweep", daemon=True)
    if threading.current_thread() is threading.main_thread():  # handlers exist only there
        thread.start()
    try:
        yield
    finally:
        stop_event.set()
        if thread.is_alive():
            thread.join()


@dataclass(frozen=True, eq=False)
class SubmititJob:
    """Callable that submitit pickles and runs. Its method `checkpoint` lets submitit requeue a preempted job."""

    job: Job
    stop_file: StopFile

    def __call__(self) -> None:
        """Run the job. If the scheduler stops it, it saves a checkpoint and resumes when it is requeued."""
        stop_signal = run_in_worker(self.job, self.stop_file)
        if stop_signal is None or self.stop_file.should_stop:
            return
        if stop_signal == _get_preemption_signal():
            # Submitit's signal handler is installed again. It calls `checkpoint`, requeues the job, and exits.
            os.kill(os.getpid(), stop_signal)
        # Exit without a result: the scheduler decides whether the job was canceled or starts again.
        sys.exit(128 + stop_signal)

    def checkpoint(self) -> DelayedSubmission:
        """Return the callable for the requeued job: this one, since the run directory holds the checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _get_preemption_signal() -> signal.Signals:
    """Return the signal that the scheduler sends before it stops a job, as submitit configures it."""
    from submitit.core.job_environment import JobEnvironment

    preemption_signal: signal.Signals = JobEnvironment._usr_sig()
    return preemption_signal
