"""`hydra/launcher=joblib`: the jobs of a sweep in several processes of this machine, which share its cores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore

from genexp.run_dir.status import read_status
from genexp.sweep.job import Job
from genexp.sweep.launcher import SweepLauncher
from genexp.sweep.worker_job import ignore_interruptions, run_elsewhere, thread_settings


class JoblibLauncher(SweepLauncher):
    """As many jobs at once as there are workers; a worker takes one job after the other."""

    package = "joblib"
    counts = ("n_jobs",)

    def __init__(self, n_jobs: int | None) -> None:
        self.n_jobs = n_jobs

    @property
    def at_once(self) -> int:
        """Return how many jobs run at a time."""
        import joblib

        return self.n_jobs or joblib.cpu_count()

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run the jobs. A worker that dies (the system kills one when memory is short) costs its job only."""
        with self.stoppable() as stop:
            left = self._together(jobs)
            while left and stop.signal is None:
                # Which of the workers died is not known: the jobs that were under way are tried one by one.
                suspects = [job for job in left if read_status(job.folder).state == "running"]
                for job in suspects:
                    if self._together([job]):
                        self.record_death(job, "its process was killed, perhaps because memory was short")
                left = self._together([job for job in left if job not in suspects])

    def _together(self, jobs: Sequence[Job]) -> list[Job]:
        """Run jobs side by side; return those that are left where a worker died."""
        import joblib
        from joblib.externals.loky import BrokenProcessPool, get_reusable_executor, wait

        workers = self.at_once
        settings = thread_settings(joblib.cpu_count() // workers)
        executor = get_reusable_executor(workers, env=settings, initializer=ignore_interruptions)
        with warnings.catch_warnings():
            # A worker whose memory has grown makes room for a new one, which costs no job; loky speaks of leaks.
            warnings.filterwarnings("ignore", message="A worker stopped while", category=UserWarning)
            calls = {executor.submit(run_elsewhere, job, self.gate, os.getpid()): job for job in jobs}
            wait(calls)
        left = []
        for call, job in calls.items():
            error = call.exception()
            if isinstance(error, BrokenProcessPool):
                left.append(job)
            elif error is not None:
                self.record_death(job, f"{type(error).__name__}: {error}")
        return left


# Not a file in conf/, which Hydra would hold against a launcher's schema.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="joblib",
    node={"_target_": f"{__name__}.JoblibLauncher", "n_jobs": None},
    provider="genexp",
)
