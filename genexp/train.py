"""The entry point: `genexp`, `python -m genexp.train` and `python scripts/train.py`.

Light on purpose: `--help`, `--cfg job` and TAB come through here and must not wait for torch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genexp.cli.error_messages import format_error
from genexp.cli.help import build_help_page
from genexp.config import CONFIG_GROUPS, find_config_dir
from genexp.distributed.rank import is_nonzero_rank, read_rank_info
from genexp.errors import CheckpointError, ConfigError, GenexpError
from genexp.run_dir.paths import CONFIG_FILE
from genexp.sweep.config import parse_sweep_resume_dir

log = logging.getLogger(__name__)
SHOW_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
MULTIRUN_FLAGS = ("-m", "--multirun")


def main() -> None:
    """Run the command line. An error that the user can mend ends in one line and exit code 1."""
    if is_nonzero_rank():
        with _exit_on_signal():
            _run_rank_process()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own errors; they are worded here
    # Hydra refuses `genexp model=vae -m seed=0,1`: what stands behind its option it takes for another command's.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in MULTIRUN_FLAGS)
    try:
        with _exit_on_signal():
            page = build_help_page(sys.argv[1:])
            if page is not None:
                print(page)
                return
            _build_hydra_main(sys.argv[1:])()
    except (GenexpError, HydraException, OmegaConfBaseException, YAMLError, OSError) as error:
        if SHOW_TRACEBACKS:
            raise
        sys.exit(f"genexp: {format_error(error, sys.argv[1:])}")
    finally:
        if read_rank_info() is not None:
            from genexp.distributed.rank_process import release_ranks

            release_ranks()


def _run_rank_process() -> None:
    """Be one of several processes of a run; the first one reads the command line and writes all records."""
    from genexp.runs.run import run_rank_process

    logging.disable()  # the first one says all that there is to say
    warnings.simplefilter("ignore")
    try:
        run_rank_process()
    except Exception:
        if SHOW_TRACEBACKS:
            raise
        sys.exit(1)


def _build_hydra_main(arguments: list[str]) -> Callable[[], None]:
    """Return Hydra's command: on conf/, or on the configuration of the run that is to be resumed."""
    conf_dir = find_config_dir()
    for group in CONFIG_GROUPS:
        if f"{group}=null" in arguments:
            raise ConfigError(f"{group}=null chooses nothing; leave it out")
    run_dir = parse_resume_dir(arguments)
    sweep_dir = parse_sweep_resume_dir(arguments)
    if sweep_dir is not None:
        if not any(argument in MULTIRUN_FLAGS for argument in arguments):
            raise ConfigError(f"sweep.resume={sweep_dir} goes on with a sweep; add -m")
        sys.argv.append(f"hydra.sweep.dir={_quote(str(sweep_dir))}")
    if run_dir is None:
        return hydra.main(version_base="1.3", config_path=str(conf_dir), config_name="train")(_run_job)
    if not (run_dir / CONFIG_FILE).is_file():
        raise CheckpointError(f"resume={run_dir} is no run's folder (it has no config.yaml); give one that is")
    for word in arguments:
        if word in MULTIRUN_FLAGS:
            raise ConfigError(f"resume={run_dir} goes on with one run; leave out {word}")
        if word.partition("=")[0] in CONFIG_GROUPS:
            raise ConfigError(f"resume={run_dir} cannot change {word}; leave it out, or start a new run")
    sys.argv[1:] = [word for word in arguments if not word.startswith("resume=")] + [
        f"resume={_quote(str(run_dir))}",
        f"hydra.searchpath=[{_quote('file://' + str(conf_dir))}]",
        "hydra/job_logging=genexp",
        f"hydra.run.dir={_quote(str(run_dir))}",
        "hydra.output_subdir=null",  # the record of how the run was started stays
        "hydra.job.name=genexp",
        "hydra.job.chdir=false",
    ]
    return hydra.main(version_base="1.3", config_path=str(run_dir.resolve()), config_name="config")(_run_job)


def parse_resume_dir(arguments: list[str]) -> Path | None:
    """Return the folder in `resume=FOLDER`, or None. Raises ConfigError where it is empty."""
    values = [
        argument.removeprefix("resume=").strip("'\"") for argument in arguments if argument.startswith("resume=")
    ]
    if not values or values[-1] == "null":
        return None
    if not values[-1]:
        raise ConfigError("resume= names no folder; give a run's, such as the last line of a stopped run names")
    return Path(values[-1])


@contextmanager
def _exit_on_signal() -> Iterator[None]:
    """Exit without a trace at a signal that comes while no run is under way (a run answers by itself)."""
    received_signals: list[int] = []

    def handle_signal(number: int, frame: FrameType | None) -> None:
        received_signals.append(number)
        raise KeyboardInterrupt  # and not exit at once: a download that is under way cleans up behind itself

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, handle_signal) for number in signals}
    try:
        yield
    except BaseException:
        if received_signals:  # whatever else a library in between has made of it
            sys.exit(128 + received_signals[0])
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _quote(text: str) -> str:
    """Return `text` as a quoted value of Hydra's override grammar."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _run_job(cfg: DictConfig) -> float | None:
    from genexp.runs.run import run_experiment  # torch and all the rooms: only now

    hydra_config = HydraConfig.get()
    with open_dict(cfg):
        cfg.pop("sweep", None)  # what resumes has none
    try:
        result = run_experiment(cfg, Path(hydra_config.runtime.output_dir))
    except GenexpError as error:
        log.info("failed: %s", error)
        if SHOW_TRACEBACKS:
            raise
        # Through Hydra it would come out with a line about overrides before it.
        sys.exit(f"genexp: {error}")
    if result.exit_code:
        sys.exit(result.exit_code)
    return result.objective


if __name__ == "__main__":
    main()
