"""Entry point of `genexp`, `python -m genexp.train` and `python scripts/train.py`.

`--help`, `--cfg job` and TAB completion use this module, so it must not import torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_app, _run_hydra, create_config_search_path, get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genexp.cli.common import SHOW_TRACEBACKS, format_unexpected_error, prepare_command
from genexp.cli.error_messages import format_error
from genexp.cli.help import build_help_page, list_completions
from genexp.cli.plugins import add_plugin_option, store_configs, use_plugins, use_plugins_of_completed_line
from genexp.cli.start_checks import (
    RESUMED_CONFIG_PREFIX,
    TRUST_FLAG,
    check_config_dirs,
    check_group_choices,
    list_config_dirs,
)
from genexp.config import CONFIG_GROUPS, find_config_dir, to_plain_config
from genexp.distributed.rank import is_nonzero_rank, read_rank_info
from genexp.errors import CheckpointError, ConfigError, GenexpError
from genexp.run_dir.config_file import read_run_config
from genexp.run_dir.files import check_no_links
from genexp.run_dir.paths import CONFIG_FILE, is_run_name, is_sweep_name, quote_value, unquote_value
from genexp.sweep.config import parse_sweep_resume_dir

if TYPE_CHECKING:
    from genexp.runs.run import RunResult

log = logging.getLogger(__name__)
# Keys of mappings that may get new keys. Hydra would ask the user to write `++` before them.
FREE_KEY_PATTERN = re.compile(r"(?:model|dataset|optimizer)(?:\.\w+)*\.(?:\w+_)?options[.=]|recorders[.=]")
LIBRARY_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, OSError)  # with a message for users


def main() -> None:
    """Run the command line. Every error is printed as one line, with exit code 1."""
    if is_nonzero_rank():
        with _exit_on_signal():
            _run_rank_process()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors; `format_error` writes the messages
    try:
        with _exit_on_signal():
            prepare_command(sys.argv)
            help_page = build_help_page(sys.argv[1:])
            if help_page is not None:
                print(help_page, flush=True)
                return
            run_arguments(sys.argv[1:])
    except BrokenPipeError:  # the reader of the output, for example `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes the output at its exit
        sys.exit(1)
    except Exception as error:
        if SHOW_TRACEBACKS:
            raise
        sys.exit(f"genexp: {format_any_error(error)}")
    finally:
        if read_rank_info() is not None:
            from genexp.distributed.rank_process import shut_down_ranks

            shut_down_ranks()


def format_any_error(error: Exception) -> str:
    """Return one line for any error of the command."""
    if isinstance(error.__cause__, OSError):  # logging.config replaces it
        error = error.__cause__
    if isinstance(error, GenexpError):
        return str(error)
    if isinstance(error, LIBRARY_ERRORS):
        return format_error(error, sys.argv[1:])
    return format_unexpected_error(error)


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


def run_arguments(arguments: list[str], task: Callable[[DictConfig], float | None] | None = None) -> None:
    """Compose the configuration with Hydra, and execute the command: run, sweep, print or complete.

    `task` trains a single run; by default, its errors end the process.
    Raises ConfigError or CheckpointError if `arguments` are contradictory, name no run or sweep directory, or
    name a configuration directory with more than plain settings.
    """
    parser, options = parse_command_line(arguments)
    check_group_choices(options.overrides)
    check_config_dirs(options)
    run_dir, sweep_dir = parse_resume_dir(options.overrides), parse_sweep_resume_dir(options.overrides)
    if sweep_dir is not None:
        if not options.multirun:
            raise ConfigError(f"sweep.resume={sweep_dir}: resumes a sweep. Add -m.")
        check_no_links(sweep_dir, is_sweep_name)
        options.overrides = [
            *(override for override in options.overrides if not override.startswith("sweep.resume=")),
            f"sweep.resume={quote_value(str(sweep_dir))}",
            f"hydra.sweep.dir={quote_value(str(sweep_dir))}",
        ]
    if options.shell_completion:  # Hydra parses the line that is completed with its own options
        os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace(f"{TRUST_FLAG} ", "")
        words = list_completions(os.environ["COMP_LINE"], parser)
        if words and options.overrides and options.overrides[0].startswith("query="):
            print(*words, sep="\n" if options.overrides[0] == "query=fish" else " ")
            return
        use_plugins_of_completed_line()
    else:
        use_plugins(options.plugin)
    options.overrides = [f"++{text}" if FREE_KEY_PATTERN.match(text) else text for text in options.overrides]
    config_dirs = () if options.shell_completion else list_config_dirs(options)
    store_configs(options.overrides, config_dirs, should_import=not options.shell_completion)
    config_name = "train" if run_dir is None else _prepare_resumption(run_dir, options)
    version.setbase("1.3")
    _run_hydra_app(parser, options, config_name, task or _run_task)


def _run_hydra_app(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    config_name: str,
    task: Callable[[DictConfig], float | None],
) -> None:
    """Execute a parsed command line with Hydra's own functions.

    `hydra.main` would parse the command line again, without the options of `parse_command_line`. `_run_hydra`
    composes the configuration twice, first to read `hydra.mode`. The first composition takes 0.1 seconds. It is
    omitted if neither a file of the user nor an override can contain this key.
    """
    commands = (options.cfg, options.info, options.shell_completion, options.hydra_help, options.help)
    files = (options.config_dir, options.config_path, options.config_name)
    words = ("hydra.mode", "hydra.searchpath", "hydra={")
    if any((*commands, *files)) or any(word in override for override in options.overrides for word in words):
        _run_hydra(options, parser, task, str(find_config_dir()), config_name)
        return
    try:
        Hydra.create_main_hydra2("genexp", create_config_search_path(str(find_config_dir())))
        _run_app(
            run=not options.multirun,
            multirun=options.multirun,
            mode=None,
            hydra=GlobalHydra.instance().hydra,
            config_name=config_name,
            task_function=task,
            overrides=options.overrides,
        )
    finally:
        GlobalHydra.instance().clear()


def parse_command_line(arguments: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return Hydra's parser with the options of genexp, and the parsed arguments. Options may follow overrides.

    Raises ConfigError.
    """
    parser = get_args_parser()
    parser.add_argument(TRUST_FLAG, action="store_true", help="Accept code in a --config-dir")
    add_plugin_option(parser)

    def raise_error(message: str) -> NoReturn:
        raise ConfigError(f"{message}. See genexp --hydra-help.")

    parser.error = raise_error  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)
    if options.experimental_rerun is not None:
        raise ConfigError(
            f"--experimental-rerun={options.experimental_rerun}: a pickle can execute code. Use resume=DIR."
        )
    commands = [name for name in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(options, name)]
    if len(commands) > 1:
        raise ConfigError(f"--{commands[0]} and --{commands[1]} cannot be combined. Use one of them.")
    if options.resolve and options.cfg is None:
        raise ConfigError("--resolve: requires --cfg. Add --cfg job.")
    return parser, options


def _prepare_resumption(run_dir: Path, options: argparse.Namespace) -> str:
    """Add the overrides of a resumed run to `options`, and return the name of its primary configuration.

    Hydra receives the content of the run's config.yaml as values. The directory is not on its search path.
    Raises ConfigError, CheckpointError.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"resume={run_dir}: not a run directory (no config.yaml). Use the directory of a run."
        )
    if options.multirun:
        raise ConfigError(f"resume={run_dir}: resumes one run. Remove -m.")
    for override in options.overrides:
        if override.partition("=")[0] in CONFIG_GROUPS:
            raise ConfigError(f"{override}: cannot change in a resumed run. Remove it, or start a new run.")
    check_no_links(run_dir, is_run_name)
    options.overrides = [
        *(override for override in options.overrides if override.partition("=")[0].strip("+") != "resume"),
        f"resume={quote_value(str(run_dir))}",
        f"hydra.run.dir={quote_value(str(run_dir))}",
        "hydra.output_subdir=null",  # keep the .hydra/ files of the first start
    ]
    # No file can have this name: a file of a configuration directory would take precedence.
    config_name = f"{RESUMED_CONFIG_PREFIX}{secrets.token_hex(8)}"
    defaults = ["_self_", {"override hydra/job_logging": "genexp"}, {"override hydra/help": "genexp"}]
    hydra_settings = {"job": {"name": "genexp", "chdir": False}}
    node = {"defaults": defaults, **read_run_config(run_dir), "hydra": hydra_settings}
    ConfigStore.instance().store(name=config_name, node=node, provider="genexp")
    return config_name


def parse_resume_dir(overrides: list[str]) -> Path | None:
    """Return the directory of the last override `resume=DIR`, or None without one.

    Raises ConfigError if the value is empty.
    """
    pairs = (override.partition("=") for override in overrides)
    values = [unquote_value(value) for key, _, value in pairs if key.strip("+") == "resume"]
    if not values or values[-1] == "null":
        return None
    if not values[-1]:
        raise ConfigError("resume=: must be a directory. Use the one in the last line of the stopped run.")
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


def run_task(cfg: DictConfig) -> tuple[Path, RunResult]:
    """Train the run of a composed configuration. Return its directory and its result. Raises any exception."""
    from genexp.runs.run import run_experiment  # imports torch, over a second

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    return run_dir, run_experiment(to_plain_config(cfg), run_dir)


def _run_task(cfg: DictConfig) -> float | None:
    try:
        _, result = run_task(cfg)
    except Exception as error:
        if SHOW_TRACEBACKS:
            raise
        # Hydra would print a line about overrides before the error.
        sys.exit(f"genexp: {format_any_error(error)}")
    if result.exit_code:
        sys.exit(result.exit_code)
    return result.objective_value


if __name__ == "__main__":
    main()
