"""What all launchers share: they plan jobs, show how these go, and differ only in where they run them."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from genexp.config import bind
from genexp.errors import ConfigError, GenexpError
from genexp.sweep.job import Job
from genexp.sweep.ledger import Entry, Ledger, digest, plain
from genexp.sweep.overview import Overview
from genexp.sweep.settings import SweepConfig
from genexp.sweep.standing import read_standing


class SweepLauncher(Launcher):
    """Runs the jobs of a sweep somewhere. Where, a subclass in `hydra_plugins` says with `execute`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare for `launch`. Raises ConfigError."""
        self.context, self.config = hydra_context, config
        self.settings = bind(SweepConfig, config.sweep, "sweep")
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.ledger = Ledger(self.folder)
        if self.ledger.entries and self.settings.resume is None:
            raise ConfigError(
                f"{self.folder} holds a sweep already; go on with sweep.resume={self.folder}, "
                f"or choose another hydra.sweep.dir"
            )
        self.begun = time.time()

    @abstractmethod
    def execute(self, jobs: Sequence[Job]) -> None:
        """Run each job with `run_job`, in this process or any other, as long as it `may_begin`.

        Nothing is returned: what came of a job is in its folder.
        """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs to their ends. Raises GenexpError before any begins where one cannot be."""
        from genexp.resume import claimed  # with torch: every start imports this module

        setup_globals()
        jobs = self._planned(job_overrides, initial_job_idx)
        self.folder.mkdir(parents=True, exist_ok=True)
        with claimed(self.folder):
            OmegaConf.save(self.config, self.folder / "multirun.yaml")
            self.ledger.write()
            unfinished = {job.number: job for job in jobs if read_standing(job.folder).state != "finished"}
            with Overview(self.ledger, self.begun):
                self.execute(list(unfinished.values()))
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)  # jobs have set up their own
        return [_returned(job) for job in jobs]

    def may_begin(self) -> bool:
        """Return whether one more job should begin."""
        return not (
            self.settings.fail_fast
            and any(s.state == "failed" for s in self.ledger.standings(self.begun).values())
        )

    def _planned(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        from genexp.run import check_config

        given = set(self.config.hydra.overrides.task)
        jobs = []
        for count, overrides in enumerate(job_overrides):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.sweep.dir = str(self.folder)
                config.hydra.job.id = config.hydra.job.num = first + count
            HydraConfig.instance().set_config(config)  # ${hydra:...} means this job's
            check_config(plain(config))
            words = tuple(word for word in overrides if word not in given)
            entry = self.ledger.note(Entry(first + count, digest(config), words, config.trainer.direction))
            folder = self.ledger.run_folder(entry)
            with read_write(config.hydra):
                config.hydra.sweep.subdir = folder.name
                config.hydra.job.id = config.hydra.job.num = entry.number
            jobs.append(Job(entry.number, folder, config, self.context))
        HydraConfig.instance().set_config(self.config)
        return jobs


def _returned(job: Job) -> JobReturn:
    """Return what a sweeper wants to know of a job."""
    standing = read_standing(job.folder)
    returned = JobReturn(
        overrides=list(job.config.hydra.overrides.task), cfg=job.config, status=JobStatus.COMPLETED
    )
    returned.return_value = standing.value
    if standing.state == "failed":
        returned.status, returned.return_value = JobStatus.FAILED, GenexpError(standing.error)
    return returned
