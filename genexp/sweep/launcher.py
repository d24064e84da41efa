"""Base class of all Hydra launchers: planning, halving, progress and resuming, independent of where jobs run."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from genexp.config import bind, to_plain_config
from genexp.errors import ConfigError, GenexpError
from genexp.registry import list_plugin_sources
from genexp.run_dir.files import lock_run_dir, remove_temporary_files, write_file
from genexp.run_dir.manifest import JobEntry, SweepManifest
from genexp.run_dir.paths import MULTIRUN_FILE
from genexp.run_dir.status import read_job_status, record_failure
from genexp.sweep.config import JobChecker, JobComposer, SweepConfig, hash_config, require_positive_int_or_none
from genexp.sweep.halving import HalvingConfig, SuccessiveHalving
from genexp.sweep.job import Job
from genexp.sweep.progress import SweepProgress
from genexp.sweep.worker_job import StopFile
from genexp.training.stopping import StopRequest, stop_on_signals

MAX_JOBS = 100_000


class SweepLauncher(Launcher):
    """Launcher of the jobs of a sweep. Subclasses in `hydra_plugins` implement `execute`."""

    required_package: ClassVar[str | None] = None  # optional dependency; the extra has the same name
    positive_int_keys: ClassVar[tuple[str, ...]] = ()  # settings that must be an integer of at least 1, or null

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set up the manifest, stop file and progress display of the sweep.

        Raises ConfigError if a package is missing, a setting is invalid, or the directory holds another sweep.
        """
        if self.required_package is not None:
            require_extra(
                f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}", self.required_package
            )
        for name in self.positive_int_keys:
            require_positive_int_or_none(f"hydra.launcher.{name}", getattr(self, name))
        self.hydra_context, self.config = hydra_context, config
        self.sweep_config = bind(SweepConfig, config.sweep, "sweep")
        self.sweep_dir = Path(config.hydra.sweep.dir).absolute()
        self.manifest = SweepManifest(self.sweep_dir)
        if self.manifest.entries and self.sweep_config.resume is None:
            raise ConfigError(
                f"hydra.sweep.dir={self.sweep_dir}: already contains a sweep. Use sweep.resume={self.sweep_dir}, "
                f"or another directory."
            )
        self.started_at = time.time()
        self.stop_file = StopFile(self.sweep_dir, self.started_at, self.sweep_config.fail_fast)
        self.progress = SweepProgress(self.manifest, self.started_at)

    @abstractmethod
    def execute(self, jobs: Sequence[Job]) -> None:
        """Run each job with `run_job` in this process, or with `run_in_worker` in another one.

        Implementations start a job only if `can_start_job()` is true. Results are in the run directories.
        """

    @property
    def max_parallel_jobs(self) -> int:
        """Maximum number of jobs that run at the same time."""
        return 1

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch of jobs and return their results in the order of `job_overrides`.

        `initial_job_idx` is the number of the first job. All configurations are checked before any job starts.

        Raises GenexpError if a configuration is invalid.
        """
        setup_globals()
        jobs = self._plan_jobs(job_overrides, initial_job_idx)
        unique_jobs = list({job.number: job for job in jobs}.values())
        halving = SuccessiveHalving(bind(HalvingConfig, self.sweep_config.halving, "sweep.halving"), unique_jobs)
        self.sweep_dir.mkdir(parents=True, exist_ok=True)
        with lock_run_dir(self.sweep_dir):
            self.stop_file.remove()
            # Not below it: jobs that outlived a killed sweep may be writing there.
            remove_temporary_files(self.sweep_dir, is_recursive=False)
            write_file(self.sweep_dir / MULTIRUN_FILE, OmegaConf.to_yaml(self.config))
            self.manifest.write()
            with self.progress:
                self._run_rungs(unique_jobs, halving)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)  # jobs change logging
        return [_build_job_return(job) for job in jobs]

    def can_start_job(self) -> bool:
        """Return True while the stop file allows another job to start."""
        return self.stop_file.allows_new_jobs

    @contextmanager
    def stop_jobs_on_signal(self) -> Iterator[StopRequest]:
        """Create the stop file when a signal arrives. At the end of the block, exit with 128 + the signal number.

        For launchers that wait for worker processes in the block. The workers poll the stop file.
        """
        with stop_on_signals(on_signal=self.stop_file.create) as stop:
            yield stop
        if stop.received_signal is not None:
            sys.exit(128 + stop.received_signal)

    def record_crash(self, job: Job, reason: str) -> None:
        """Record that `job` failed with `reason`, unless its process has already recorded how it ended.

        For processes that died. A job with a checkpoint can still be resumed.
        """
        if read_job_status(job.run_dir, self.started_at).state in ("waiting", "running"):
            record_failure(job.run_dir, to_plain_config(job.config), reason)

    def _run_rungs(self, jobs: Sequence[Job], halving: SuccessiveHalving) -> None:
        """Run `jobs` up to each rung and continue with the survivors. Without rungs, run all jobs completely."""
        self.manifest.halted_job_numbers.clear()
        self.progress.expected_work = halving.expected_work or self.progress.expected_work
        for rung in halving.rungs:
            pending = [replace(job, until_epoch=rung.epoch) for job in jobs if not halving.has_reached(job, rung)]
            self.execute(pending)
            if not self.can_start_job() or any(self._is_waiting_or_running(job) for job in pending):
                return
            survivors = halving.select_survivors(jobs, rung)
            self.progress.print_line(str(rung))
            self.manifest.halted_job_numbers |= {job.number for job in jobs} - {job.number for job in survivors}
            self.manifest.write()
            jobs = survivors
        self.execute([job for job in jobs if read_job_status(job.run_dir).state != "finished"])

    def _is_waiting_or_running(self, job: Job) -> bool:
        return read_job_status(job.run_dir, self.started_at).state in ("waiting", "running")

    def _plan_jobs(self, job_overrides: Sequence[Sequence[str]], first_job_number: int) -> list[Job]:
        common_overrides = _format_common_overrides(self.config.hydra.overrides.task)
        composer = JobComposer(self.hydra_context.config_loader, self.config)
        checker = JobChecker()
        jobs = []
        for index, overrides in enumerate(job_overrides):
            config = composer.compose(overrides)
            with open_dict(config):
                config.hydra.sweep.dir = str(self.sweep_dir)
                config.hydra.job.id = config.hydra.job.num = first_job_number + index
            HydraConfig.instance().set_config(config)  # ${hydra:...} resolves in this job's node
            values = to_plain_config(config)
            checker.check(values)  # reports errors before any job starts
            own_overrides = tuple(
                override.lstrip("+") for override in overrides if override not in common_overrides
            )
            entry = self.manifest.register(
                JobEntry(
                    first_job_number + index,
                    hash_config(config, values=values),
                    own_overrides,
                    config.trainer.direction,
                )
            )
            run_dir = self.manifest.get_run_dir(entry)
            with read_write(config.hydra):
                config.hydra.sweep.subdir = run_dir.name
                config.hydra.job.id = config.hydra.job.num = entry.number
            jobs.append(Job(entry.number, run_dir, config, self.hydra_context, tuple(list_plugin_sources())))
        HydraConfig.instance().set_config(self.config)
        return jobs


def _format_common_overrides(task_overrides: Sequence[str]) -> set[str]:
    """Return the overrides that all jobs share, in the format of a sweeper: `a=0.001` for `a=1e-3`."""
    parsed = OverridesParser.create().parse_overrides(list(task_overrides))
    return {
        f"{override.get_key_element()}={override.get_value_element_as_str()}"
        for override in parsed
        if not override.is_sweep_override()
    }


def require_extra(option: str, package: str) -> None:
    """Raise ConfigError if `package`, which the option `option` requires, is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{option}: requires the package {package}. Run `pip install 'genexp[{package}]'`.")


def _build_job_return(job: Job) -> JobReturn:
    """Return the result of `job` for a sweeper.

    `return_value` is the objective of a finished job (NaN if it has none), the error of a failed one, else None.
    """
    status = read_job_status(job.run_dir)
    job_return = JobReturn(
        overrides=list(job.config.hydra.overrides.task), cfg=job.config, status=JobStatus.COMPLETED
    )
    value = math.nan if status.objective_value is None else status.objective_value
    job_return.return_value = value if status.state == "finished" else None
    if status.state == "failed":
        job_return.status, job_return.return_value = JobStatus.FAILED, GenexpError(status.error or "unknown error")
    return job_return


def parse_sweep_overrides(sweeper: BasicSweeper, arguments: list[str]) -> list[Override]:
    """Return the parsed overrides of a sweep. `arguments` take precedence over `hydra.sweeper.params`.

    Raises ConfigError for a sweep without values, or with more than MAX_JOBS.
    """
    assert sweeper.hydra_context is not None
    lines = [*(f"{key}={value}" for key, value in sweeper.params.items()), *arguments]
    parser = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader)
    by_key = {override.get_key_element(): override for override in parser.parse_overrides(lines)}
    for override in by_key.values():
        _check_sweep_values(override)
    return list(by_key.values())


def _check_sweep_values(override: Override) -> None:
    """Raise ConfigError for a sweep override without values, or with too many."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        if not value.start < value.end:
            raise ConfigError(f"{override.input_line}: an empty interval. Write the smaller bound first.")
    elif override.is_sweep_override():
        count = sum(1 for _ in islice(override.sweep_iterator(), MAX_JOBS + 1))
        if count == 0:
            raise ConfigError(f"{override.input_line}: no values. Give at least one.")
        if count > MAX_JOBS:
            raise ConfigError(f"{override.input_line}: more than {MAX_JOBS:,} values. Give fewer.")


def require_sweep_launcher(sweeper: BasicSweeper) -> SweepLauncher:
    """Return the launcher of `sweeper`.

    Raises ConfigError if another package registered its launcher under the same name.
    """
    launcher = sweeper.launcher
    if not isinstance(launcher, SweepLauncher):
        raise ConfigError(
            f"hydra/launcher: {type(launcher).__module__}.{type(launcher).__name__} is not a launcher of genexp. "
            f"Uninstall the package that provides it."
        )
    return launcher
