"""A job as submitit starts it on a cluster, and starts it again when its place was wanted for another."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genexp.sweep.job import Job
from genexp.sweep.stop_file import Gate
from genexp.sweep.worker_job import run_elsewhere

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


@dataclass(frozen=True, eq=False)
class Submitted:
    """What submitit pickles and calls; with its method `checkpoint` it puts a job back into the queue."""

    job: Job
    gate: Gate

    def __call__(self) -> None:
        """Run the job. One that its scheduler stops has saved; it goes on when it is started again."""
        stopped = run_elsewhere(self.job, self.gate)
        if stopped is None or self.gate.stops:
            return
        if stopped == _announcement():
            # Submitit's handler, in whose place ours was: it asks for `checkpoint`, queues, and does not return.
            os.kill(os.getpid(), stopped)
        # Without a result: the scheduler knows whether the job was cancelled or is to start again.
        sys.exit(128 + stopped)

    def checkpoint(self) -> DelayedSubmission:
        """Return what is to be called when the job starts again: it goes on from what its folder holds."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _announcement() -> signal.Signals:
    """Return the signal by which submitit has the scheduler announce a job's end."""
    from submitit.core.job_environment import JobEnvironment

    announced: signal.Signals = JobEnvironment._usr_sig()
    return announced
