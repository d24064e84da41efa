"""A job of a sweep: an ordinary run in a numbered folder, begun or gone on with as its folder says."""

from __future__ import annotations

import copy
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import rich
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime, setup_globals
from hydra.core.utils import run_job as run_in_hydra
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from genexp.errors import GenexpError, RunDirInUseError
from genexp.run_dir.status import can_resume, read_status, record_failure

log = logging.getLogger(__name__)
HYDRA_JOB_NAME = "genexp"
LOCK_POLL_SECONDS = 0.5
JobTask = Callable[[DictConfig, Path], Any]  # what is done with a job's configuration in its folder


@dataclass(frozen=True, eq=False)
class Job:
    """One configuration of a sweep, and where it runs. It can be sent to another process."""

    number: int
    run_dir: Path
    config: DictConfig  # all of it, with Hydra's own part
    hydra_context: HydraContext
    until_epoch: int | None = None  # where it halts


def run_job(job: Job, should_run: Callable[[], bool] = lambda: True) -> signal.Signals | None:
    """Run a job to its end, in whatever process; return the signal that stopped it, if one did.

    What comes of it, its error too, stands in its folder and nowhere else. One that has finished is left
    alone, one that was stopped or killed goes on from its newest checkpoint. One that another process is at
    (a scheduler's, which outlived the sweep that had asked for it) is waited for, as long as it is `wanted`.
    """
    while should_run() and read_status(job.run_dir).state != "finished":
        try:
            return _run_once(job)
        except RunDirInUseError:
            time.sleep(LOCK_POLL_SECONDS)
    return None


def _run_once(job: Job) -> signal.Signals | None:
    """Run a job. Raises FolderInUseError."""
    with silence_console():
        outcome: signal.Signals | RunDirInUseError | None = run_hydra_task(job, partial(_train, job.until_epoch))
    if isinstance(outcome, RunDirInUseError):
        raise outcome
    return outcome


def _train(until_epoch: int | None, config: DictConfig, run_dir: Path) -> signal.Signals | None:
    from genexp.runs.run import run_experiment  # torch and all the rooms: only now

    result = run_experiment(config, run_dir, until_epoch)
    return signal.Signals(result.exit_code - 128) if result.exit_code else None


def run_hydra_task(job: Job, task: JobTask) -> Any:
    """Let Hydra call `task` with the configuration and the folder of a job; return what it returns.

    Where it fails, that is noted in the folder and goes no further: None is returned; or the FolderInUseError.
    """
    config = copy.deepcopy(job.config)
    if can_resume(job.run_dir):
        config.resume = str(job.run_dir)
        with read_write(config.hydra):
            config.hydra.output_subdir = None  # the record of how the run was started stays
    setup_globals()
    JobRuntime.instance().set("name", HYDRA_JOB_NAME)
    job_return = run_in_hydra(
        task_function=partial(_run_and_record_failure, task),
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=job.hydra_context,
    )
    return job_return.return_value


def _run_and_record_failure(task: JobTask, config: DictConfig) -> Any:
    from genexp.recorders.checkpoints import truncate_logs
    from genexp.runs.resume import lock_run_dir

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with open_dict(config):
        del config.sweep
    try:
        if config.resume is None:
            with lock_run_dir(run_dir):
                truncate_logs(run_dir, {})  # what a job that was killed before its first checkpoint has left
        return task(config, run_dir)
    except RunDirInUseError as error:
        return error  # raised here, Hydra would print it
    except Exception as error:
        config_dict = OmegaConf.to_container(config, resolve=True)
        assert isinstance(config_dict, dict)
        log_failure({str(key): value for key, value in config_dict.items()}, run_dir, error)
        return None


def log_failure(config: dict[str, Any], run_dir: Path, error: Exception) -> None:
    """Note in a job's log and folder what ended it."""
    message = str(error) if isinstance(error, GenexpError) else f"{type(error).__name__}: {error}"
    log.error("failed: %s", message, exc_info=None if isinstance(error, GenexpError) else error)
    record_failure(run_dir, config, message)


@contextmanager
def silence_console() -> Iterator[None]:
    """Keep a job from the terminal, which is the sweep's."""
    console = rich.get_console()
    was_quiet, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = was_quiet
