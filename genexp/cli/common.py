"""What the tools' command lines share. Light on purpose: `--help` must not wait for torch."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from genexp.errors import ConfigError, GenexpError

SHOW_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
DEVICES = ("auto", "cpu", "cuda", "mps")


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are errors like all others: one line, exit code 1."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which weights to take, and where to compute."""
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help="best (by the run's objective), newest, or a file, also one of RUN/checkpoints by its name "
        "(default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", choices=DEVICES, help="default: %(default)s")


def build_int_type(minimum: int) -> Callable[[str], int]:
    """Return an argument type: whole numbers from `minimum`."""

    def parse_int(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {minimum}")
        return value

    return parse_int


def run_command(program: str, command: Callable[[], int]) -> NoReturn:
    """Exit with what `work` returns. An error that the user can mend ends in one line and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code = command()
    except (GenexpError, OSError) as error:
        if SHOW_TRACEBACKS:
            raise
        sys.exit(f"{program}: {format_exception(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)


def format_exception(error: Exception) -> str:
    """Return what went wrong, in one line."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return next(iter(str(error).splitlines()), repr(error))
