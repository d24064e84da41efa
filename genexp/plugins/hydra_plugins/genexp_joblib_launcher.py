"""`hydra/launcher=joblib`: the jobs of a sweep in several processes of this machine, which share its cores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore

from genexp.run_dir.status import read_status
from genexp.sweep.job import Job
from genexp.sweep.launcher import SweepLauncher
from genexp.sweep.worker_job import build_thread_env, ignore_sigint, run_in_worker


class JoblibLauncher(SweepLauncher):
    """As many jobs at once as there are workers; a worker takes one job after the other."""

    required_package = "joblib"
    positive_int_keys = ("n_jobs",)

    def __init__(self, n_jobs: int | None) -> None:
        self.n_jobs = n_jobs

    @property
    def max_parallel_jobs(self) -> int:
        """Return how many jobs run at a time."""
        import joblib

        return self.n_jobs or joblib.cpu_count()

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run the jobs. A worker that dies (the system kills one when memory is short) costs its job only."""
        with self.forward_stop_signal() as stop:
            unfinished = self._run_in_pool(jobs)
            while unfinished and stop.signal is None:
                # Which of the workers died is not known: the jobs that were under way are tried one by one.
                interrupted = [job for job in unfinished if read_status(job.run_dir).state == "running"]
                for job in interrupted:
                    if self._run_in_pool([job]):
                        self.record_crash(job, "its process was killed, perhaps because memory was short")
                unfinished = self._run_in_pool([job for job in unfinished if job not in interrupted])

    def _run_in_pool(self, jobs: Sequence[Job]) -> list[Job]:
        """Run jobs side by side; return those that are left where a worker died."""
        import joblib
        from joblib.externals.loky import BrokenProcessPool, get_reusable_executor, wait

        n_workers = self.max_parallel_jobs
        thread_env = build_thread_env(joblib.cpu_count() // n_workers)
        executor = get_reusable_executor(n_workers, env=thread_env, initializer=ignore_sigint)
        with warnings.catch_warnings():
            # A worker whose memory has grown makes room for a new one, which costs no job; loky speaks of leaks.
            warnings.filterwarnings("ignore", message="A worker stopped while", category=UserWarning)
            futures = {executor.submit(run_in_worker, job, self.stop_file, os.getpid()): job for job in jobs}
            wait(futures)
        unfinished = []
        for future, job in futures.items():
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                unfinished.append(job)
            elif error is not None:
                self.record_crash(job, f"{type(error).__name__}: {error}")
        return unfinished


# Not a file in conf/, which Hydra would hold against a launcher's schema.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="joblib",
    node={"_target_": f"{__name__}.JoblibLauncher", "n_jobs": None},
    provider="genexp",
)
