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

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from genexp.config import bind
from genexp.errors import ConfigError, GenexpError
from genexp.run_dir.status import read_status, record_failure
from genexp.sweep.config import SweepConfig, require_positive_int
from genexp.sweep.halving import Halving, HalvingConfig
from genexp.sweep.job import Job
from genexp.sweep.manifest import JobEntry, SweepManifest, hash_config, to_plain_config
from genexp.sweep.progress import SweepProgress
from genexp.sweep.stop_file import StopFile
from genexp.training.stopping import StopRequest, stop_on_signals


class SweepLauncher(Launcher):
    """Runs the jobs of a sweep somewhere. Where, a subclass in `hydra_plugins` says with `execute`."""

    required_package: ClassVar[str | None] = (
        None  # what it needs beside the program itself: an extra of the same name
    )
    positive_int_keys: ClassVar[tuple[str, ...]] = ()  # which of its settings are whole numbers, or null

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare for `launch`. Raises ConfigError."""
        if self.required_package is not None:
            require_extra(
                f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}", self.required_package
            )
        for name in self.positive_int_keys:
            require_positive_int(f"hydra.launcher.{name}", getattr(self, name))
        self.hydra_context, self.config = hydra_context, config
        self.sweep_config = bind(SweepConfig, config.sweep, "sweep")
        self.sweep_dir = Path(config.hydra.sweep.dir).absolute()
        self.manifest = SweepManifest(self.sweep_dir)
        if self.manifest.entries and self.sweep_config.resume is None:
            raise ConfigError(
                f"{self.sweep_dir} holds a sweep already; go on with sweep.resume={self.sweep_dir}, "
                f"or choose another hydra.sweep.dir"
            )
        self.started_at = time.time()
        self.stop_file = StopFile(self.sweep_dir, self.started_at, self.sweep_config.fail_fast)
        self.progress = SweepProgress(self.manifest, self.started_at)

    @abstractmethod
    def execute(self, jobs: Sequence[Job]) -> None:
        """Run each job with `run_job` in this process, or with `run_elsewhere` in any other.

        It does so as long as it `may_begin`. Nothing is returned: what came of a job is in its folder.
        """

    @property
    def max_parallel_jobs(self) -> int:
        """Return how many jobs run at a time."""
        return 1

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs to their ends. Raises GenexpError before any begins where one cannot be."""
        from genexp.runs.resume import lock_run_dir  # with torch: every start imports this module

        setup_globals()
        jobs = self._plan_jobs(job_overrides, initial_job_idx)
        unique_jobs = list({job.number: job for job in jobs}.values())
        halving = Halving(bind(HalvingConfig, self.sweep_config.halving, "sweep.halving"), unique_jobs)
        self.sweep_dir.mkdir(parents=True, exist_ok=True)
        with lock_run_dir(self.sweep_dir):
            self.stop_file.remove()
            OmegaConf.save(self.config, self.sweep_dir / "multirun.yaml")
            self.manifest.write()
            with self.progress:
                self._run_rungs(unique_jobs, halving)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)  # jobs have set up their own
        return [_build_job_return(job) for job in jobs]

    def can_start_job(self) -> bool:
        """Return whether one more job should begin."""
        return self.stop_file.allows_new_jobs

    @contextmanager
    def forward_stop_signal(self) -> Iterator[StopRequest]:
        """Let a signal stop the jobs that run elsewhere while the block waits for them; then exit as it asks."""
        with stop_on_signals(on_signal=self.stop_file.create) as stop:
            yield stop
        if stop.signal is not None:
            sys.exit(128 + stop.signal)

    def record_crash(self, job: Job, reason: str) -> None:
        """Note that a job failed which could not do so itself. One that has saved can go on."""
        if read_status(job.run_dir, self.started_at).state in ("waiting", "running"):
            record_failure(job.run_dir, to_plain_config(job.config), reason)

    def _run_rungs(self, jobs: Sequence[Job], halving: Halving) -> None:
        """Run jobs to their ends, or to the rung that is the last for them."""
        self.manifest.halted_jobs.clear()
        self.progress.expected_jobs = halving.expected_jobs or self.progress.expected_jobs
        for rung in halving.rungs:
            pending = [replace(job, until_epoch=rung.epoch) for job in jobs if not halving.has_reached(job, rung)]
            self.execute(pending)
            if not self.can_start_job() or any(self._is_unfinished(job) for job in pending):
                return
            survivors = halving.select_survivors(jobs, rung)
            self.progress.print_line(str(rung))
            self.manifest.halted_jobs |= {job.number for job in jobs} - {job.number for job in survivors}
            self.manifest.write()
            jobs = survivors
        self.execute([job for job in jobs if read_status(job.run_dir).state != "finished"])

    def _is_unfinished(self, job: Job) -> bool:
        return read_status(job.run_dir, self.started_at).state in ("waiting", "running")

    def _plan_jobs(self, job_overrides: Sequence[Sequence[str]], first_number: int) -> list[Job]:
        from genexp.runs.build import check_config

        task_overrides = set(self.config.hydra.overrides.task)
        jobs = []
        for index, overrides in enumerate(job_overrides):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.sweep.dir = str(self.sweep_dir)
                config.hydra.job.id = config.hydra.job.num = first_number + index
            HydraConfig.instance().set_config(config)  # ${hydra:...} means this job's
            check_config(to_plain_config(config))
            own_overrides = tuple(override for override in overrides if override not in task_overrides)
            entry = self.manifest.register(
                JobEntry(first_number + index, hash_config(config), own_overrides, config.trainer.direction)
            )
            run_dir = self.manifest.get_run_dir(entry)
            with read_write(config.hydra):
                config.hydra.sweep.subdir = run_dir.name
                config.hydra.job.id = config.hydra.job.num = entry.number
            jobs.append(Job(entry.number, run_dir, config, self.hydra_context))
        HydraConfig.instance().set_config(self.config)
        return jobs


def require_extra(choice: str, package: str) -> None:
    """Raise ConfigError where a package that a `choice` needs is not installed; the extra bears its name."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{choice} needs the package {package}, which is not installed: pip install 'genexp[{package}]'"
        )


def _build_job_return(job: Job) -> JobReturn:
    """Return what a sweeper wants to know of a job: its value, NaN where it has none, None before its end."""
    status = read_status(job.run_dir)
    job_return = JobReturn(
        overrides=list(job.config.hydra.overrides.task), cfg=job.config, status=JobStatus.COMPLETED
    )
    value = math.nan if status.value is None else status.value
    job_return.return_value = value if status.state == "finished" else None
    if status.state == "failed":
        job_return.status, job_return.return_value = JobStatus.FAILED, GenexpError(status.error)
    return job_return


def parse_sweep_overrides(sweeper: BasicSweeper, arguments: list[str]) -> list[Override]:
    """Return what is swept over and what is fixed: `hydra.sweeper.params`, then the command line's."""
    assert sweeper.hydra_context is not None
    lines = [*(f"{key}={value}" for key, value in sweeper.params.items()), *arguments]
    parser = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader)
    by_key = {override.get_key_element(): override for override in parser.parse_overrides(lines)}
    return list(by_key.values())


def get_sweep_launcher(sweeper: BasicSweeper) -> SweepLauncher:
    """Return the sweeper's launcher. Raises ConfigError where another package's has taken the name of ours."""
    launcher = sweeper.launcher
    if not isinstance(launcher, SweepLauncher):
        raise ConfigError(
            f"hydra/launcher is {type(launcher).__module__}.{type(launcher).__name__}, which keeps no record of a "
            f"sweep; uninstall its package: genexp has launchers of its own"
        )
    return launcher
