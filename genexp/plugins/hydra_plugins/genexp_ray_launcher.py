"""`hydra/launcher=ray`: the jobs of a sweep as tasks of a Ray cluster, or of a small one on this machine."""

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
# On this machine alone nothing large is ever handed over: the data set is read where it is needed.
LOCAL_RAY_OPTIONS = {"include_dashboard": False, "object_store_memory": 100 * 2**20}


class RayLauncher(SweepLauncher):
    """Ray starts a job wherever the cores and GPUs that it asks for are free."""

    required_package = "ray"
    positive_int_keys = ("n_jobs", "cpus_per_job")

    def __init__(self, address: str | None, n_jobs: int | None, cpus_per_job: int, gpus_per_job: float) -> None:
        self.address, self.n_jobs = address, n_jobs
        self.cpus_per_job, self.gpus_per_job = cpus_per_job, gpus_per_job

    def setup(self, **kwargs: Any) -> None:
        """Prepare for `launch`. Raises ConfigError."""
        super().setup(**kwargs)
        if self.address is not None and ":" in self.address:
            _check_reachable(self.address)

    @property
    def max_parallel_jobs(self) -> int:
        """Return how many jobs run at a time."""
        if self.n_jobs is not None:
            return self.n_jobs
        self._connect()
        import ray

        available, required = ray.cluster_resources(), {"CPU": self.cpus_per_job, "GPU": self.gpus_per_job}
        return max(
            1, min(int(available.get(resource, 0) / amount) for resource, amount in required.items() if amount)
        )

    def execute(self, jobs: Sequence[Job]) -> None:
        """Hand the jobs to Ray as there is room for them. One whose process dies costs the others nothing."""
        import ray

        with self.forward_stop_signal():
            self._connect()
            remote_run = ray.remote(num_cpus=self.cpus_per_job, num_gpus=self.gpus_per_job, max_retries=0)(
                run_in_worker
            )
            pending = list(jobs)
            running: dict[Any, Job] = {}
            while running or (pending and self.can_start_job()):
                while pending and len(running) < self.max_parallel_jobs and self.can_start_job():
                    job = pending.pop(0)
                    running[remote_run.remote(job, self.stop_file)] = job
                ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
                for reference in ready:
                    self._check_result(reference, running.pop(reference))

    def _check_result(self, reference: Any, job: Job) -> None:
        import ray

        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self.record_crash(job, f"its process ended early ({type(error).__name__})")

    def _connect(self) -> None:
        """Connect to Ray, once. Raises ConfigError."""
        import ray

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options = LOCAL_RAY_OPTIONS if self.address is None else {"address": self.address}
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            message = str(error).splitlines()[0]
            raise ConfigError(f"hydra.launcher.address={self.address}: {message}") from None


def _check_reachable(address: str) -> None:
    """Raise ConfigError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"hydra.launcher.address={address} does not answer ({error}); give the address of a cluster's head, "
            f"or auto on one of its machines"
        ) from None


# Not a file in conf/, which Hydra would hold against a launcher's schema.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="ray",
    node={
        "_target_": f"{__name__}.RayLauncher",
        "address": None,  # of a cluster, such as auto or ray://HOST:10001; null: a small one on this machine
        "n_jobs": None,  # at a time; null: as many as there are cores and GPUs for
        "cpus_per_job": 1,
        "gpus_per_job": 0,
    },
    provider="genexp",
)
