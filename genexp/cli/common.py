"""Common parts of the commands on finished runs. This module must not import torch, so that `--help` is fast."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from genexp.errors import ConfigError, GenexpError
from genexp.registry import get_plugins

SHOW_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
DEVICES = ("auto", "cpu", "cuda", "mps")
OUT_OF_MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "Unable to allocate")  # torch's and numpy's
MAX_MESSAGE_LENGTH = 200
DIR_METAVARS = ("RUN", "RUN_A", "RUN_B", "DIR", "FOLDER")  # of arguments that TAB completes with directories
COMPLETION_VARIABLE = "_ARGCOMPLETE"  # set by the shell function of argcomplete


class CommandParser(argparse.ArgumentParser):
    """Argument parser that raises ConfigError instead of printing its usage and exiting.

    During TAB completion, `parse_args` and `parse_intermixed_args` print completions with argcomplete and exit.
    """

    completions: Mapping[str, Sequence[str]] = {"WHICH": ("best", "newest")}  # metavar → values

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        self._complete()
        return super().parse_args(*args, **kwargs)

    def parse_intermixed_args(self, *args: Any, **kwargs: Any) -> Any:
        self._complete()
        return super().parse_intermixed_args(*args, **kwargs)

    def _complete(self) -> None:
        if COMPLETION_VARIABLE not in os.environ:
            return
        import argcomplete  # extra "completion"; it is installed if its shell function has set the variable

        for action in self._actions:
            if action.metavar in self.completions:
                action.completer = argcomplete.ChoicesCompleter(self.completions[action.metavar])  # type: ignore
            elif action.metavar in DIR_METAVARS:
                action.completer = argcomplete.DirectoriesCompleter()  # type: ignore
        argcomplete.autocomplete(self, always_complete_options="long")

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with `message`."""
        raise ConfigError(f"{message}. See {self.prog} --help.")


def add_checkpoint_and_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options `--checkpoint` and `--device`."""
    add_checkpoint_option(parser)
    parser.add_argument("--device", default="auto", choices=DEVICES, help="default: %(default)s")


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--checkpoint`."""
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help="best (by trainer.objective), newest, a file name in RUN/checkpoints, or a path "
        "(default: %(default)s)",
    )


def build_int_type(minimum: int) -> Callable[[str], int]:
    """Return a `type` for argparse that accepts integers of at least `minimum`."""

    def parse_int(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text} is not an integer of at least {minimum}")
        return value

    return parse_int


def prepare_command(arguments: Sequence[str]) -> None:
    """Let the standard streams escape what they cannot encode.

    Raises ConfigError for arguments that are not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            text = os.fsencode(argument).decode(errors="backslashreplace")
            raise ConfigError(f"{text}: not UTF-8. Rename the file, and set LC_ALL=C.UTF-8.") from None


def run_command(program: str, command: Callable[[], int]) -> NoReturn:
    """Run `command` and exit with the code that it returns.

    Every error is printed as one line after the name `program`, with exit code 1. Ctrl-C exits with code 130.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        prepare_command(sys.argv)
        code = command()
    except (GenexpError, OSError) as error:
        if SHOW_TRACEBACKS:
            raise
        sys.exit(f"{program}: {format_first_line(error)}")
    except Exception as error:
        if SHOW_TRACEBACKS:
            raise
        sys.exit(f"{program}: {format_unexpected_error(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)


def format_unexpected_error(error: BaseException) -> str:
    """Return one line for an unexpected error: its message, its place, and how to print the traceback."""
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(words in message for words in OUT_OF_MEMORY_MESSAGES):
        reason = f"not enough memory ({message or 'MemoryError'}). Use a smaller batch, model or data set"
    elif isinstance(error, RecursionError):
        reason = "too deeply nested values or files. Use a flatter structure"
    else:
        reason = f"unexpected {type(error).__name__}" + (f": {message[:MAX_MESSAGE_LENGTH]}" if message else "")
    return f"{reason} (at {_find_place(error)}). Set HYDRA_FULL_ERROR=1 to print the traceback."


def _find_place(error: BaseException) -> str:
    """Return file:line of the innermost frame of a plugin, else of this package, else of the innermost frame."""
    package = Path(__file__).resolve().parents[1]
    frames = traceback.extract_tb(error.__traceback__) or traceback.extract_stack(limit=1)
    plugin_files = {str(plugin.path) for plugin in get_plugins()}
    own_frames = [frame for frame in frames if frame.filename in plugin_files] or [
        frame for frame in frames if Path(frame.filename).is_relative_to(package)
    ]
    frame = (own_frames or frames)[-1]
    path = Path(frame.filename)
    return f"{path.relative_to(package.parent) if path.is_relative_to(package) else path.name}:{frame.lineno}"


def format_first_line(error: Exception) -> str:
    """Return the first line of the message of `error`, for an OSError with file name and remedy."""
    if isinstance(error, OSError):
        reason = str(error.strerror or error).rstrip(".")
        return f"{error.filename or 'a file'}: {reason}. Use another path, or check its permissions."
    return next(iter(str(error).splitlines()), repr(error))
