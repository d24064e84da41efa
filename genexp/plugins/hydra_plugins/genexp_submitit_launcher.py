"""Submitit launchers: `submitit_slurm` for SLURM clusters, and `submitit_local` to test it on this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from genexp.errors import ConfigError
from genexp.run_dir.paths import SUBMITIT_DIR
from genexp.run_dir.status import read_job_status
from genexp.sweep.job import Job
from genexp.sweep.launcher import SweepLauncher
from genexp.sweep.worker_job import SubmititJob, build_thread_env, count_cpu_cores

if TYPE_CHECKING:
    from submitit import Executor
    from submitit import Job as SubmittedJob

POLL_SECONDS = 0.5
MAX_QUEUED_JOBS = 1000  # in effect no limit, since the cluster has its own queue


class SubmititLauncher(SweepLauncher):
    """Base class of launchers that submit jobs through submitit and wait until all have ended."""

    required_package = "submitit"
    positive_int_keys = ("n_jobs", "timeout_min", "max_num_timeout")

    def __init__(self, n_jobs: int | None, timeout_min: int, max_num_timeout: int, **parameters: Any) -> None:
        self.n_jobs, self.timeout_min, self.max_num_timeout = n_jobs, timeout_min, max_num_timeout
        self.executor_parameters = {
            key: OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
            for key, value in parameters.items()
            if value is not None
        }

    def setup(self, **kwargs: Any) -> None:
        """Set up the sweep, with a new folder for submitit.

        Submitit unpickles results from its folder. Files that were there before can be from others.
        """
        super().setup(**kwargs)
        self.submitit_dir = self.sweep_dir / SUBMITIT_DIR / secrets.token_hex(8)

    def build_executor(self) -> Executor:
        """Return the submitit executor. Raises ConfigError if a setting is invalid."""
        raise NotImplementedError

    @contextmanager
    def set_worker_environment(self) -> Iterator[None]:
        """Set the environment that processes started in the block inherit. Does nothing by default."""
        yield

    def execute(self, jobs: Sequence[Job]) -> None:
        """Submit jobs up to `max_parallel_jobs` at a time. After a signal, cancel those that have not started."""
        executor, pending = self.build_executor(), list(jobs)
        handles: dict[Job, SubmittedJob[Any]] = {}
        with self.stop_jobs_on_signal() as stop:
            while handles or (pending and self.can_start_job()):
                if pending and self.can_start_job() and len(handles) < self.max_parallel_jobs:
                    free_slots = self.max_parallel_jobs - len(handles)
                    handles |= self._submit(executor, pending[:free_slots])
                    pending = pending[free_slots:]
                if stop.received_signal is not None:
                    self._cancel_waiting(handles)
                handles = {job: handle for job, handle in handles.items() if not self._is_done(job, handle)}
                time.sleep(POLL_SECONDS)

    def _submit(self, executor: Executor, jobs: Sequence[Job]) -> dict[Job, SubmittedJob[Any]]:
        with self.set_worker_environment(), executor.batch():  # one SLURM job array
            return {job: executor.submit(SubmititJob(job, self.stop_file)) for job in jobs}

    def _cancel_waiting(self, handles: dict[Job, SubmittedJob[Any]]) -> None:
        for job, handle in handles.items():
            if read_job_status(job.run_dir, self.started_at).state == "waiting":
                handle.cancel(check=False)

    def _is_done(self, job: Job, handle: SubmittedJob[Any]) -> bool:
        if not handle.done():
            return False
        error = handle.exception()
        if error is not None and not self.stop_file.should_stop:
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            self.record_crash(job, f"its process ended early ({lines[-1].strip()}); see {self.submitit_dir}")
        return True


class LocalLauncher(SubmititLauncher):
    """Launcher that runs each job in its own process on this machine, to test the behavior on a cluster."""

    @property
    def max_parallel_jobs(self) -> int:
        """Maximum number of jobs that run at the same time: `n_jobs`, or the number of CPU cores."""
        return self.n_jobs or count_cpu_cores()

    def build_executor(self) -> Executor:
        """Return the executor that starts local processes."""
        from submitit import LocalExecutor

        executor = LocalExecutor(self.submitit_dir, max_num_timeout=self.max_num_timeout)
        executor.update_parameters(timeout_min=self.timeout_min, **self.executor_parameters)
        return executor

    @contextmanager
    def set_worker_environment(self) -> Iterator[None]:
        """Limit the CPU threads of processes started in the block, and block SIGINT in them.

        Ctrl-C stops these jobs through the stop file.
        """
        thread_env = build_thread_env(count_cpu_cores() // self.max_parallel_jobs)
        os.environ.update(thread_env)
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
            for name in thread_env:
                del os.environ[name]


class SlurmLauncher(SubmititLauncher):
    """Launcher for a SLURM cluster. It runs on a machine that can submit jobs and shares the file system."""

    @property
    def max_parallel_jobs(self) -> int:
        """Maximum number of jobs in the queue at the same time."""
        return self.n_jobs or MAX_QUEUED_JOBS

    def setup(self, **kwargs: Any) -> None:
        """Set up the sweep. Raises ConfigError, also if `sbatch` or `srun` is not installed."""
        super().setup(**kwargs)
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError(
                "hydra/launcher=submitit_slurm: sbatch and srun not found. Start the sweep on a node of the "
                "cluster, or use hydra/launcher=submitit_local."
            )

    def build_executor(self) -> Executor:
        """Return the executor that submits to SLURM. Raises ConfigError if a setting is invalid."""
        from submitit import SlurmExecutor

        executor = SlurmExecutor(self.submitit_dir, max_num_timeout=self.max_num_timeout)
        try:
            executor.update_parameters(timeout_min=self.timeout_min, **self.executor_parameters)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"hydra.launcher: {str(error).splitlines()[0]}. Check its settings.") from None
        return executor


COMMON_OPTIONS = {
    "n_jobs": None,  # jobs submitted at the same time; null: no limit on SLURM, the CPU cores locally
    "timeout_min": 60,  # minutes until the scheduler stops a job; the job then saves a checkpoint and is requeued
    "max_num_timeout": 1000,  # number of times a job is requeued after its timeout
}
# Registered here, not in conf/: Hydra would validate a file there against the schema of its plugin of that name.
STORE = ConfigStore.instance()
STORE.store(
    group="hydra/launcher",
    name="submitit_local",
    node={"_target_": f"{__name__}.LocalLauncher", **COMMON_OPTIONS, "timeout_min": 7 * 24 * 60},
    provider="genexp",
)
STORE.store(
    group="hydra/launcher",
    name="submitit_slurm",
    node={
        "_target_": f"{__name__}.SlurmLauncher",
        **COMMON_OPTIONS,
        "name": "genexp",
        "signal_delay_s": 120,  # seconds from the signal to the stop: time for the current step and a checkpoint
        "partition": None,
        "account": None,
        "qos": None,
        "constraint": None,
        "cpus_per_task": None,
        "gpus_per_node": None,
        "mem_gb": None,
        "array_parallelism": 256,  # jobs of the array that run at the same time
        "setup": None,  # list of shell commands before each job, such as `module load …`
        "additional_parameters": {"requeue": True},  # other options of sbatch
    },
    provider="genexp",
)
