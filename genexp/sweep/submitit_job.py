"""A job as submitit starts it on a cluster, and starts it again when its place was wanted for another."""

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
    """What submitit pickles and calls; with its method `checkpoint` it puts a job back into the queue."""

    job: Job
    stop_file: StopFile

    def __call__(self) -> None:
        """Run the job. One that its scheduler stops has saved; it goes on when it is started again."""
        stop_signal = run_in_worker(self.job, self.stop_file)
        if stop_signal is None or self.stop_file.should_stop:
            return
        if stop_signal == _get_preemption_signal():
            # Submitit's handler, in whose place ours was: it asks for `checkpoint`, queues, and does not return.
            os.kill(os.getpid(), stop_signal)
        # Without a result: the scheduler knows whether the job was canceled or is to start again.
        sys.exit(128 + stop_signal)

    def checkpoint(self) -> DelayedSubmission:
        """Return what is to be called when the job starts again: it goes on from what its folder holds."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _get_preemption_signal() -> signal.Signals:
    """Return the signal by which submitit has the scheduler announce a job's end."""
    from submitit.core.job_environment import JobEnvironment

    preemption_signal: signal.Signals = JobEnvironment._usr_sig()
    return preemption_signal
