"""Joblib launcher `hydra/launcher=joblib`: worker processes on this machine that share its CPU cores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore

from genexp.run_dir.status import read_job_status
from genexp.sweep.job import Job
from genexp.sweep.launcher import SweepLauncher
from genexp.sweep.worker_job import build_thread_env, ignore_sigint, run_in_worker


class JoblibLauncher(SweepLauncher):
    """Launcher with a pool of worker processes. A worker runs one job after the other."""

    required_package = "joblib"
    positive_int_keys = ("n_jobs",)

    def __init__(self, n_jobs: int | None) -> None:
        self.n_jobs = n_jobs

    @property
    def max_parallel_jobs(self) -> int:
        """Number of worker processes: `n_jobs`, or the number of CPU cores."""
        import joblib

        return self.n_jobs or joblib.cpu_count()

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run the jobs. If a worker dies, for example for lack of memory, only its own job fails."""
        with self.stop_jobs_on_signal() as stop:
            unfinished = self._run_in_pool(jobs)
            while unfinished and stop.received_signal is None:
                # It is unknown which worker died. Each job that was running is therefore run again alone. If none
                # was, a worker died before a job had written its first status.
                running = [job for job in unfinished if read_job_status(job.run_dir).state == "running"]
                interrupted = running or unfinished
                for job in interrupted:
                    if self._run_in_pool([job]):
                        self.record_crash(job, "the worker process was killed, possibly for lack of memory")
                unfinished = self._run_in_pool([job for job in unfinished if job not in interrupted])

    def _run_in_pool(self, jobs: Sequence[Job]) -> list[Job]:
        """Run jobs in parallel; return those without a result after the death of a worker."""
        import joblib
        from joblib.externals.loky import BrokenProcessPool, get_reusable_executor, wait

        n_workers = self.max_parallel_jobs
        thread_env = build_thread_env(joblib.cpu_count() // n_workers)
        executor = get_reusable_executor(n_workers, env=thread_env, initializer=ignore_sigint)
        with warnings.catch_warnings():
            # Loky replaces a worker whose memory has grown and warns of a leak. No job is lost.
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


# Registered here, not in conf/: Hydra would validate a file there against the schema of its plugin of that name.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="joblib",
    node={"_target_": f"{__name__}.JoblibLauncher", "n_jobs": None},
    provider="genexp",
)
