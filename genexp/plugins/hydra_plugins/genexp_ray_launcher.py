"""Ray launcher `hydra/launcher=ray`: jobs of a sweep as tasks of a Ray cluster, remote or on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore

from genexp.errors import ConfigError
from genexp.sweep.job import Job
from genexp.sweep.launcher import SweepLauncher
from genexp.sweep.worker_job import run_in_worker

POLL_SECONDS = 0.5
CONNECT_TIMEOUT_SECONDS = 10
# A small object store is enough: each job reads its data set itself, and no large object is passed to it.
LOCAL_RAY_OPTIONS = {"include_dashboard": False, "object_store_memory": 100 * 2**20}


class RayLauncher(SweepLauncher):
    """Launcher that submits jobs as Ray tasks with a required number of CPU cores and GPUs."""

    required_package = "ray"
    positive_int_keys = ("n_jobs", "cpus_per_job")

    def __init__(self, address: str | None, n_jobs: int | None, cpus_per_job: int, gpus_per_job: float) -> None:
        self.address, self.n_jobs = address, n_jobs
        self.cpus_per_job, self.gpus_per_job = cpus_per_job, gpus_per_job

    def setup(self, **kwargs: Any) -> None:
        """Set up the sweep. Raises ConfigError, also if the cluster at `address` is unreachable."""
        super().setup(**kwargs)
        if self.address is not None and ":" in self.address:
            _check_reachable(self.address)

    @property
    def max_parallel_jobs(self) -> int:
        """Maximum number of jobs that run at the same time: `n_jobs`, or the capacity of the cluster."""
        if self.n_jobs is not None:
            return self.n_jobs
        self._connect()
        import ray

        available, required = ray.cluster_resources(), {"CPU": self.cpus_per_job, "GPU": self.gpus_per_job}
        return max(
            1, min(int(available.get(resource, 0) / amount) for resource, amount in required.items() if amount)
        )

    def execute(self, jobs: Sequence[Job]) -> None:
        """Submit the jobs as capacity allows. If the process of a job dies, only that job fails."""
        import ray

        with self.stop_jobs_on_signal():
            self._connect()
            run_remotely = ray.remote(num_cpus=self.cpus_per_job, num_gpus=self.gpus_per_job, max_retries=0)(
                run_in_worker
            )
            pending = list(jobs)
            running: dict[Any, Job] = {}
            while running or (pending and self.can_start_job()):
                while pending and len(running) < self.max_parallel_jobs and self.can_start_job():
                    job = pending.pop(0)
                    running[run_remotely.remote(job, self.stop_file)] = job
                ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
                for object_ref in ready:
                    self._check_result(object_ref, running.pop(object_ref))

    def _check_result(self, object_ref: Any, job: Job) -> None:
        import ray

        try:
            ray.get(object_ref)
        except ray.exceptions.RayError as error:
            self.record_crash(job, f"the worker process ended unexpectedly ({type(error).__name__})")

    def _connect(self) -> None:
        """Connect to the cluster, or start a local one, unless connected. Raises ConfigError if that fails."""
        import ray

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options = LOCAL_RAY_OPTIONS if self.address is None else {"address": self.address}
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            message = str(error).splitlines()[0]
            raise ConfigError(f"hydra.launcher.address={self.address}: {message}. Check the cluster.") from None


def _check_reachable(address: str) -> None:
    """Raise ConfigError if nothing listens at `address` (`HOST:PORT`). Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"hydra.launcher.address={address}: no connection ({error}). Use the address of the head node of a "
            f"cluster, or auto on one of its nodes."
        ) from None


# Registered here, not in conf/: Hydra would validate a file there against the schema of its plugin of that name.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="ray",
    node={
        "_target_": f"{__name__}.RayLauncher",
        "address": None,  # cluster address, such as auto or ray://HOST:10001; null: start a local one
        "n_jobs": None,  # parallel jobs; null: as many as the cores and GPUs allow
        "cpus_per_job": 1,
        "gpus_per_job": 0,
    },
    provider="genexp",
)
