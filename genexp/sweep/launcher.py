"""What all launchers share: they plan jobs, show how these go, and differ only in where they run them."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from genexp.config import bind
from genexp.errors import ConfigError, GenexpError
from genexp.run_dir.status import read_status, record_failure
from genexp.sweep.config import SweepConfig, require_positive
from genexp.sweep.halving import Halving, HalvingConfig
from genexp.sweep.job import Job
from genexp.sweep.manifest import Entry, Ledger, digest, plain
from genexp.sweep.progress import Overview
from genexp.sweep.stop_file import Gate
from genexp.training.stopping import StopRequest, stop_on_signals


class SweepLauncher(Launcher):
    """Runs the jobs of a sweep somewhere. Where, a subclass in `hydra_plugins` says with `execute`."""

    package: ClassVar[str | None] = None  # what it needs beside the program itself: an extra of the same name
    counts: ClassVar[tuple[str, ...]] = ()  # which of its settings are whole numbers, or null

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare for `launch`. Raises ConfigError."""
        if self.package is not None:
            require_extra(f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}", self.package)
        for name in self.counts:
            require_positive(f"hydra.launcher.{name}", getattr(self, name))
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
        self.gate = Gate(self.folder, self.begun, self.settings.fail_fast)
        self.overview = Overview(self.ledger, self.begun)

    @abstractmethod
    def execute(self, jobs: Sequence[Job]) -> None:
        """Run each job with `run_job` in this process, or with `run_elsewhere` in any other.

        It does so as long as it `may_begin`. Nothing is returned: what came of a job is in its folder.
        """

    @property
    def at_once(self) -> int:
        """Return how many jobs run at a time."""
        return 1

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs to their ends. Raises GenexpError before any begins where one cannot be."""
        from genexp.runs.resume import lock_run_dir  # with torch: every start imports this module

        setup_globals()
        jobs = self._planned(job_overrides, initial_job_idx)
        different = list({job.number: job for job in jobs}.values())
        halving = Halving(bind(HalvingConfig, self.settings.halving, "sweep.halving"), different)
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_run_dir(self.folder):
            self.gate.open()
            OmegaConf.save(self.config, self.folder / "multirun.yaml")
            self.ledger.write()
            with self.overview:
                self._run(different, halving)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)  # jobs have set up their own
        return [_returned(job) for job in jobs]

    def may_begin(self) -> bool:
        """Return whether one more job should begin."""
        return self.gate.is_open

    @contextmanager
    def stoppable(self) -> Iterator[StopRequest]:
        """Let a signal stop the jobs that run elsewhere while the block waits for them; then exit as it asks."""
        with stop_on_signals(then=self.gate.stop) as stop:
            yield stop
        if stop.signal is not None:
            sys.exit(128 + stop.signal)

    def record_death(self, job: Job, how: str) -> None:
        """Note that a job failed which could not do so itself. One that has saved can go on."""
        if read_status(job.folder, self.begun).state in ("waiting", "running"):
            record_failure(job.folder, plain(job.config), how)

    def _run(self, jobs: Sequence[Job], halving: Halving) -> None:
        """Run jobs to their ends, or to the rung that is the last for them."""
        self.ledger.halted.clear()
        self.overview.expected = halving.expected or self.overview.expected
        for rung in halving.rungs:
            short = [replace(job, until_epoch=rung.epoch) for job in jobs if not halving.reached(job, rung)]
            self.execute(short)
            if not self.may_begin() or any(self._is_open(job) for job in short):
                return
            better = halving.better(jobs, rung)
            self.overview.say(str(rung))
            self.ledger.halted |= {job.number for job in jobs} - {job.number for job in better}
            self.ledger.write()
            jobs = better
        self.execute([job for job in jobs if read_status(job.folder).state != "finished"])

    def _is_open(self, job: Job) -> bool:
        return read_status(job.folder, self.begun).state in ("waiting", "running")

    def _planned(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        from genexp.runs.build import check_config

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


def require_extra(choice: str, package: str) -> None:
    """Raise ConfigError where a package that a `choice` needs is not installed; the extra bears its name."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{choice} needs the package {package}, which is not installed: pip install 'genexp[{package}]'"
        )


def _returned(job: Job) -> JobReturn:
    """Return what a sweeper wants to know of a job: its value, NaN where it has none, None before its end."""
    standing = read_status(job.folder)
    returned = JobReturn(
        overrides=list(job.config.hydra.overrides.task), cfg=job.config, status=JobStatus.COMPLETED
    )
    value = math.nan if standing.value is None else standing.value
    returned.return_value = value if standing.state == "finished" else None
    if standing.state == "failed":
        returned.status, returned.return_value = JobStatus.FAILED, GenexpError(standing.error)
    return returned
