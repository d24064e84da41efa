"""Entry point of `genexp`, `python -m genexp.train` and `python scripts/train.py`.

`--help`, `--cfg job` and TAB completion use this module, so it must not import torch.
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
    """Run the command line. Errors that a user can correct are printed as one line, with exit code 1."""
    if is_nonzero_rank():
        with _exit_on_signal():
            _run_rank_process()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors; `format_error` writes the messages
    # Hydra rejects `genexp model=vae -m seed=0,1`, since argparse accepts no overrides on both sides of a flag.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in MULTIRUN_FLAGS)
    try:
        with _exit_on_signal():
            help_page = build_help_page(sys.argv[1:])
            if help_page is not None:
                print(help_page)
                return
            _build_hydra_main(sys.argv[1:])()
    except (GenexpError, HydraException, OmegaConfBaseException, YAMLError, OSError) as error:
        if SHOW_TRACEBACKS:
            raise
        sys.exit(f"genexp: {format_error(error, sys.argv[1:])}")
    finally:
        if read_rank_info() is not None:
            from genexp.distributed.rank_process import shut_down_ranks

            shut_down_ranks()


def _run_rank_process() -> None:
    """Run as a rank above 0 of a distributed run. Rank 0 reads the command line and writes all files."""
    from genexp.runs.run import run_rank_process

    logging.disable()  # rank 0 logs for all
    warnings.simplefilter("ignore")
    try:
        run_rank_process()
    except Exception:
        if SHOW_TRACEBACKS:
            raise
        sys.exit(1)


def _build_hydra_main(arguments: list[str]) -> Callable[[], None]:
    """Return `_run_task` decorated by `hydra.main`, with conf/ or the configuration of the run to resume.

    For a resumed run or sweep it also changes `sys.argv`.
    Raises ConfigError or CheckpointError if `arguments` are contradictory or name no run or sweep directory.
    """
    conf_dir = find_config_dir()
    for group in CONFIG_GROUPS:
        if f"{group}=null" in arguments:
            raise ConfigError(f"{group}=null chooses nothing; leave it out")
    run_dir = parse_resume_dir(arguments)
    sweep_dir = parse_sweep_resume_dir(arguments)
    if sweep_dir is not None:
        if not any(argument in MULTIRUN_FLAGS for argument in arguments):
            raise ConfigError(f"sweep.resume={sweep_dir} goes on with a sweep; add -m")
        sys.argv.append(f"hydra.sweep.dir={_quote_override_value(str(sweep_dir))}")
    if run_dir is None:
        return hydra.main(version_base="1.3", config_path=str(conf_dir), config_name="train")(_run_task)
    if not (run_dir / CONFIG_FILE).is_file():
        raise CheckpointError(f"resume={run_dir} is no run's folder (it has no config.yaml); give one that is")
    for argument in arguments:
        if argument in MULTIRUN_FLAGS:
            raise ConfigError(f"resume={run_dir} goes on with one run; leave out {argument}")
        if argument.partition("=")[0] in CONFIG_GROUPS:
            raise ConfigError(f"resume={run_dir} cannot change {argument}; leave it out, or start a new run")
    sys.argv[1:] = [word for word in arguments if not word.startswith("resume=")] + [
        f"resume={_quote_override_value(str(run_dir))}",
        f"hydra.searchpath=[{_quote_override_value('file://' + str(conf_dir))}]",
        "hydra/job_logging=genexp",
        f"hydra.run.dir={_quote_override_value(str(run_dir))}",
        "hydra.output_subdir=null",  # keep the .hydra/ files of the first start
        "hydra.job.name=genexp",
        "hydra.job.chdir=false",
    ]
    return hydra.main(version_base="1.3", config_path=str(run_dir.resolve()), config_name="config")(_run_task)


def parse_resume_dir(arguments: list[str]) -> Path | None:
    """Return the directory of the last `resume=DIR` argument, or None without one.

    Raises ConfigError if the value is empty.
    """
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
    """Exit without a traceback on SIGINT or SIGTERM outside of training.

    During training the run installs its own handlers.
    """
    received_signals: list[int] = []

    def handle_signal(signum: int, frame: FrameType | None) -> None:
        received_signals.append(signum)
        raise KeyboardInterrupt  # no direct exit, so that a download removes its partial file

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous_handlers = {number: signal.signal(number, handle_signal) for number in signals}
    try:
        yield
    except BaseException:
        if received_signals:  # a library may have replaced the KeyboardInterrupt by another exception
            sys.exit(128 + received_signals[0])
        raise
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def _quote_override_value(text: str) -> str:
    """Return `text` as a quoted value of Hydra's override grammar."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _run_task(cfg: DictConfig) -> float | None:
    from genexp.runs.run import run_experiment  # imports torch, over a second

    hydra_config = HydraConfig.get()
    with open_dict(cfg):
        cfg.pop("sweep", None)  # absent in the configuration of a resumed run
    try:
        result = run_experiment(cfg, Path(hydra_config.runtime.output_dir))
    except GenexpError as error:
        log.info("failed: %s", error)
        if SHOW_TRACEBACKS:
            raise
        # Hydra would print a line about overrides before the error.
        sys.exit(f"genexp: {error}")
    if result.exit_code:
        sys.exit(result.exit_code)
    return result.objective_value


if __name__ == "__main__":
    main()
