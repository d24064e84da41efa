"""Job of a sweep: an ordinary run in a numbered directory, resumed if it has a checkpoint."""

from __future__ import annotations

import copy
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import rich
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime, setup_globals
from hydra.core.utils import run_job as hydra_run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, read_write

from genexp.config import to_plain_config
from genexp.errors import GenexpError, RunDirInUseError
from genexp.registry import set_plugins
from genexp.run_dir.files import lock_run_dir
from genexp.run_dir.status import is_resumable, read_job_status, record_failure

log = logging.getLogger(__name__)
HYDRA_JOB_NAME = "genexp"
LOCK_POLL_SECONDS = 0.5
# Called with a plain, resolved configuration and a run directory.
JobTask = Callable[[Mapping[str, Any], Path], Any]


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep. Picklable: launchers send it to worker processes."""

    number: int  # index in the sweep, from 0
    run_dir: Path
    config: DictConfig  # complete composed configuration, with the nodes `hydra` and `sweep`
    hydra_context: HydraContext
    plugins: tuple[str, ...] = ()  # files and modules that the job may need
    until_epoch: int | None = None  # complete epochs after which the run stops; None: no such limit


def run_job(job: Job, should_run: Callable[[], bool] = lambda: True) -> signal.Signals | None:
    """Run `job` in this process and return the signal that stopped it, or None.

    Results and errors are written to the run directory only. A finished job is skipped.
    A stopped or killed job resumes from its newest checkpoint. If another process holds the lock of the run
    directory, the function waits for it while `should_run()` is true. A cluster job that outlived its sweep is
    such a process.
    """
    set_plugins(job.plugins)
    while should_run() and read_job_status(job.run_dir).state != "finished":
        try:
            return _run_once(job)
        except RunDirInUseError:
            time.sleep(LOCK_POLL_SECONDS)
    return None


def _run_once(job: Job) -> signal.Signals | None:
    """Run `job` once, without waiting for the lock. Raises RunDirInUseError if another process holds it."""
    with silence_console():
        outcome: signal.Signals | RunDirInUseError | None = run_hydra_task(
            job, partial(_run_experiment, job.until_epoch)
        )
    if isinstance(outcome, RunDirInUseError):
        raise outcome
    return outcome


def _run_experiment(until_epoch: int | None, values: Mapping[str, Any], run_dir: Path) -> signal.Signals | None:
    from genexp.runs.run import run_experiment  # imports torch, over a second

    result = run_experiment(values, run_dir, until_epoch)
    return signal.Signals(result.exit_code - 128) if result.exit_code else None


def run_hydra_task(job: Job, task: JobTask) -> Any:
    """Call `task` through Hydra with the configuration and the run directory of `job`; return its result.

    A RunDirInUseError is returned, not raised. Any other exception is recorded in the run directory, and the
    result is None.
    """
    config = copy.deepcopy(job.config)
    if is_resumable(job.run_dir):
        config.resume = str(job.run_dir)
        with read_write(config.hydra):
            config.hydra.output_subdir = None  # keep the .hydra/ files of the first start
    setup_globals()
    JobRuntime.instance().set("name", HYDRA_JOB_NAME)
    job_return = hydra_run_job(
        task_function=partial(_run_and_record_failure, task),
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=job.hydra_context,
    )
    return job_return.return_value


def _run_and_record_failure(task: JobTask, config: DictConfig) -> Any:
    from genexp.run_dir.checkpoint import truncate_logs

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    values = to_plain_config(config)
    try:
        if values["resume"] is None:
            with lock_run_dir(run_dir):
                truncate_logs(run_dir, {})  # remove logs of a job killed before its first checkpoint
        return task(values, run_dir)
    except RunDirInUseError as error:
        return error  # returned, because Hydra would print a raised one
    except Exception as error:
        log_and_record_failure(values, run_dir, error)
        return None


def log_and_record_failure(config: Mapping[str, Any], run_dir: Path, error: Exception) -> None:
    """Write `error` to the log and to the status file of a job.

    The log includes a traceback unless `error` is a GenexpError.
    """
    message = str(error) if isinstance(error, GenexpError) else f"{type(error).__name__}: {error}"
    log.error("failed: %s", message, exc_info=None if isinstance(error, GenexpError) else error)
    record_failure(run_dir, config, message)


@contextmanager
def silence_console() -> Iterator[None]:
    """Suppress output through rich's shared console in the block. The terminal shows the progress of the sweep."""
    console = rich.get_console()
    was_quiet, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = was_quiet
