"""`hydra/launcher=submitit_slurm`: the jobs of a sweep as jobs of a cluster; `submitit_local` tries that here."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from genexp.errors import ConfigError
from genexp.run_dir.status import read_status
from genexp.sweep.job import Job
from genexp.sweep.launcher import SweepLauncher
from genexp.sweep.submitit_job import SubmititJob
from genexp.sweep.worker_job import build_thread_env

if TYPE_CHECKING:
    from submitit import Executor
    from submitit import Job as Ticket

POLL_SECONDS = 0.5
SUBMITIT_DIR = ".submitit"  # its scripts and logs, in the sweep's folder
MAX_QUEUED_JOBS = 1000  # as many as there are: the cluster has a queue


class SubmititLauncher(SweepLauncher):
    """Hands jobs to submitit and waits until all are over."""

    required_package = "submitit"
    positive_int_keys = ("n_jobs", "timeout_min", "max_num_timeout")

    def __init__(self, n_jobs: int | None, timeout_min: int, max_num_timeout: int, **parameters: Any) -> None:
        self.n_jobs, self.timeout_min, self.max_num_timeout = n_jobs, timeout_min, max_num_timeout
        self.parameters = {
            key: OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
            for key, value in parameters.items()
            if value is not None
        }

    def build_executor(self) -> Executor:
        """Return what submits jobs. Raises ConfigError."""
        raise NotImplementedError

    @contextmanager
    def set_worker_environment(self) -> Iterator[None]:
        """Prepare the processes that are started in the block."""
        yield

    def execute(self, jobs: Sequence[Job]) -> None:
        """Submit jobs as there is room for them. On a signal, those that have not begun are taken back."""
        executor, pending = self.build_executor(), list(jobs)
        handles: dict[Job, Ticket[Any]] = {}
        with self.forward_stop_signal() as stop:
            while handles or (pending and self.can_start_job()):
                if pending and self.can_start_job() and len(handles) < self.max_parallel_jobs:
                    free_slots = self.max_parallel_jobs - len(handles)
                    handles |= self._submit(executor, pending[:free_slots])
                    pending = pending[free_slots:]
                if stop.signal is not None:
                    self._cancel_waiting(handles)
                handles = {job: handle for job, handle in handles.items() if not self._is_done(job, handle)}
                time.sleep(POLL_SECONDS)

    def _submit(self, executor: Executor, jobs: Sequence[Job]) -> dict[Job, Ticket[Any]]:
        with self.set_worker_environment(), executor.batch():  # one array of jobs
            return {job: executor.submit(SubmititJob(job, self.stop_file)) for job in jobs}

    def _cancel_waiting(self, handles: dict[Job, Ticket[Any]]) -> None:
        for job, handle in handles.items():
            if read_status(job.run_dir, self.started_at).state == "waiting":
                handle.cancel(check=False)

    def _is_done(self, job: Job, handle: Ticket[Any]) -> bool:
        if not handle.done():
            return False
        error = handle.exception()
        if error is not None and not self.stop_file.should_stop:
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            self.record_crash(
                job, f"its process ended early ({lines[-1].strip()}); see {self.sweep_dir / SUBMITIT_DIR}"
            )
        return True


class LocalLauncher(SubmititLauncher):
    """On this machine, in processes of their own; to try what a cluster would do."""

    @property
    def max_parallel_jobs(self) -> int:
        """Return how many jobs run at a time."""
        return self.n_jobs or len(os.sched_getaffinity(0))

    def build_executor(self) -> Executor:
        """Return what starts processes here."""
        from submitit import LocalExecutor

        executor = LocalExecutor(self.sweep_dir / SUBMITIT_DIR, max_num_timeout=self.max_num_timeout)
        executor.update_parameters(timeout_min=self.timeout_min, **self.parameters)
        return executor

    @contextmanager
    def set_worker_environment(self) -> Iterator[None]:
        """Give each process its share of cores, and keep Ctrl-C from it: the sweep tells it to stop."""
        thread_env = build_thread_env(len(os.sched_getaffinity(0)) // self.max_parallel_jobs)
        os.environ.update(thread_env)
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
            for name in thread_env:
                del os.environ[name]


class SlurmLauncher(SubmititLauncher):
    """On a SLURM cluster, from a machine that may submit to it and sees the same files."""

    @property
    def max_parallel_jobs(self) -> int:
        """Return how many jobs are in the queue at a time."""
        return self.n_jobs or MAX_QUEUED_JOBS

    def setup(self, **kwargs: Any) -> None:
        """Prepare for `launch`. Raises ConfigError."""
        super().setup(**kwargs)
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError(
                "hydra/launcher=submitit_slurm finds no sbatch and srun here; start the sweep on a machine of the "
                "cluster, or try hydra/launcher=submitit_local"
            )

    def build_executor(self) -> Executor:
        """Return what submits to SLURM. Raises ConfigError."""
        from submitit import SlurmExecutor

        executor = SlurmExecutor(self.sweep_dir / SUBMITIT_DIR, max_num_timeout=self.max_num_timeout)
        try:
            executor.update_parameters(timeout_min=self.timeout_min, **self.parameters)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"hydra.launcher: {str(error).splitlines()[0]}") from None
        return executor


COMMON_OPTIONS = {
    "n_jobs": None,  # in the queue at a time
    "timeout_min": 60,  # then the scheduler stops a job, which saves, and starts it again
    "max_num_timeout": 1000,  # how often
}
# Not files in conf/, which Hydra would hold against a launcher's schema.
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
        "signal_delay_s": 120,  # before its end, when a job is told to save: a step and a checkpoint fit in
        "partition": None,
        "account": None,
        "qos": None,
        "constraint": None,
        "cpus_per_task": None,
        "gpus_per_node": None,
        "mem_gb": None,
        "array_parallelism": 256,  # of these, how many run at a time
        "setup": None,  # lines of shell before each job, such as `module load …`
        "additional_parameters": {"requeue": True},  # further options of sbatch
    },
    provider="genexp",
)
