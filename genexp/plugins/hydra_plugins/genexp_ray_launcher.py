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
from genexp.sweep.worker_job import run_elsewhere

POLL_SECONDS = 0.5
CONNECT_SECONDS = 10
# On this machine alone nothing large is ever handed over: the data set is read where it is needed.
HERE = {"include_dashboard": False, "object_store_memory": 100 * 2**20}


class RayLauncher(SweepLauncher):
    """Ray starts a job wherever the cores and GPUs that it asks for are free."""

    package = "ray"
    counts = ("n_jobs", "cpus_per_job")

    def __init__(self, address: str | None, n_jobs: int | None, cpus_per_job: int, gpus_per_job: float) -> None:
        self.address, self.n_jobs = address, n_jobs
        self.cpus_per_job, self.gpus_per_job = cpus_per_job, gpus_per_job

    def setup(self, **given: Any) -> None:
        """Prepare for `launch`. Raises ConfigError."""
        super().setup(**given)
        if self.address is not None and ":" in self.address:
            _refuse_unreachable(self.address)

    @property
    def at_once(self) -> int:
        """Return how many jobs run at a time."""
        if self.n_jobs is not None:
            return self.n_jobs
        self._connect()
        import ray

        have, each = ray.cluster_resources(), {"CPU": self.cpus_per_job, "GPU": self.gpus_per_job}
        return max(1, min(int(have.get(kind, 0) / share) for kind, share in each.items() if share))

    def execute(self, jobs: Sequence[Job]) -> None:
        """Hand the jobs to Ray as there is room for them. One whose process dies costs the others nothing."""
        import ray

        with self.stoppable():
            self._connect()
            call = ray.remote(num_cpus=self.cpus_per_job, num_gpus=self.gpus_per_job, max_retries=0)(run_elsewhere)
            waiting = list(jobs)
            calls: dict[Any, Job] = {}
            while calls or (waiting and self.may_begin()):
                while waiting and len(calls) < self.at_once and self.may_begin():
                    job = waiting.pop(0)
                    calls[call.remote(job, self.gate)] = job
                over, _ = ray.wait(list(calls), timeout=POLL_SECONDS)
                for reference in over:
                    self._conclude(reference, calls.pop(reference))

    def _conclude(self, reference: Any, job: Job) -> None:
        import ray

        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self.record_death(job, f"its process ended early ({type(error).__name__})")

    def _connect(self) -> None:
        """Connect to Ray, once. Raises ConfigError."""
        import ray

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings = HERE if self.address is None else {"address": self.address}
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            raise ConfigError(f"hydra.launcher.address={self.address}: {said}") from None


def _refuse_unreachable(address: str) -> None:
    """Raise ConfigError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
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
