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
from genexp.sweep.submitit_job import Submitted
from genexp.sweep.worker_job import thread_settings

if TYPE_CHECKING:
    from submitit import Executor
    from submitit import Job as Ticket

POLL_SECONDS = 0.5
FOLDER = ".submitit"  # its scripts and logs, in the sweep's folder
AT_ONCE = 1000  # as many as there are: the cluster has a queue


class SubmititLauncher(SweepLauncher):
    """Hands jobs to submitit and waits until all are over."""

    package = "submitit"
    counts = ("n_jobs", "timeout_min", "max_num_timeout")

    def __init__(self, n_jobs: int | None, timeout_min: int, max_num_timeout: int, **parameters: Any) -> None:
        self.n_jobs, self.timeout_min, self.max_num_timeout = n_jobs, timeout_min, max_num_timeout
        self.parameters = {
            key: OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
            for key, value in parameters.items()
            if value is not None
        }

    def executor(self) -> Executor:
        """Return what submits jobs. Raises ConfigError."""
        raise NotImplementedError

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Prepare the processes that are started in the block."""
        yield

    def execute(self, jobs: Sequence[Job]) -> None:
        """Submit jobs as there is room for them. On a signal, those that have not begun are taken back."""
        executor, waiting = self.executor(), list(jobs)
        tickets: dict[Job, Ticket[Any]] = {}
        with self.stoppable() as stop:
            while tickets or (waiting and self.may_begin()):
                if waiting and self.may_begin() and len(tickets) < self.at_once:
                    room = self.at_once - len(tickets)
                    tickets |= self._submit(executor, waiting[:room])
                    waiting = waiting[room:]
                if stop.signal is not None:
                    self._take_back(tickets)
                tickets = {job: ticket for job, ticket in tickets.items() if not self._is_over(job, ticket)}
                time.sleep(POLL_SECONDS)

    def _submit(self, executor: Executor, jobs: Sequence[Job]) -> dict[Job, Ticket[Any]]:
        with self.submitting(), executor.batch():  # one array of jobs
            return {job: executor.submit(Submitted(job, self.gate)) for job in jobs}

    def _take_back(self, tickets: dict[Job, Ticket[Any]]) -> None:
        for job, ticket in tickets.items():
            if read_status(job.folder, self.begun).state == "waiting":
                ticket.cancel(check=False)

    def _is_over(self, job: Job, ticket: Ticket[Any]) -> bool:
        if not ticket.done():
            return False
        error = ticket.exception()
        if error is not None and not self.gate.stops:
            said = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            self.record_death(job, f"its process ended early ({said[-1].strip()}); see {self.folder / FOLDER}")
        return True


class LocalLauncher(SubmititLauncher):
    """On this machine, in processes of their own; to try what a cluster would do."""

    @property
    def at_once(self) -> int:
        """Return how many jobs run at a time."""
        return self.n_jobs or len(os.sched_getaffinity(0))

    def executor(self) -> Executor:
        """Return what starts processes here."""
        from submitit import LocalExecutor

        executor = LocalExecutor(self.folder / FOLDER, max_num_timeout=self.max_num_timeout)
        executor.update_parameters(timeout_min=self.timeout_min, **self.parameters)
        return executor

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Give each process its share of cores, and keep Ctrl-C from it: the sweep tells it to stop."""
        settings = thread_settings(len(os.sched_getaffinity(0)) // self.at_once)
        os.environ.update(settings)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for name in settings:
                del os.environ[name]


class SlurmLauncher(SubmititLauncher):
    """On a SLURM cluster, from a machine that may submit to it and sees the same files."""

    @property
    def at_once(self) -> int:
        """Return how many jobs are in the queue at a time."""
        return self.n_jobs or AT_ONCE

    def setup(self, **given: Any) -> None:
        """Prepare for `launch`. Raises ConfigError."""
        super().setup(**given)
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError(
                "hydra/launcher=submitit_slurm finds no sbatch and srun here; start the sweep on a machine of the "
                "cluster, or try hydra/launcher=submitit_local"
            )

    def executor(self) -> Executor:
        """Return what submits to SLURM. Raises ConfigError."""
        from submitit import SlurmExecutor

        executor = SlurmExecutor(self.folder / FOLDER, max_num_timeout=self.max_num_timeout)
        try:
            executor.update_parameters(timeout_min=self.timeout_min, **self.parameters)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"hydra.launcher: {str(error).splitlines()[0]}") from None
        return executor


COMMON = {
    "n_jobs": None,  # in the queue at a time
    "timeout_min": 60,  # then the scheduler stops a job, which saves, and starts it again
    "max_num_timeout": 1000,  # how often
}
# Not files in conf/, which Hydra would hold against a launcher's schema.
STORE = ConfigStore.instance()
STORE.store(
    group="hydra/launcher",
    name="submitit_local",
    node={"_target_": f"{__name__}.LocalLauncher", **COMMON, "timeout_min": 7 * 24 * 60},
    provider="genexp",
)
STORE.store(
    group="hydra/launcher",
    name="submitit_slurm",
    node={
        "_target_": f"{__name__}.SlurmLauncher",
        **COMMON,
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
