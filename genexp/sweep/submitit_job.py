"""Job of a sweep as a submitit callable with checkpointing and requeueing."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genexp.sweep.job import Job
from genexp.sweep.stop_file import StopFile
from genexp.sweep.worker_job import run_in_worker

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


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
