"""Common parts of the commands on finished runs. This module must not import torch, so that `--help` is fast."""

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
    """Argument parser that raises ConfigError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with `message`."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_checkpoint_and_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options `--checkpoint` and `--device`."""
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help="best (by the run's objective), newest, or a file, also one of RUN/checkpoints by its name "
        "(default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", choices=DEVICES, help="default: %(default)s")


def build_int_type(minimum: int) -> Callable[[str], int]:
    """Return a `type` for argparse that accepts integers of at least `minimum`."""

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
    """Run `command` and exit with the code that it returns.

    GenexpError and OSError are printed as one line after the name `program`, with exit code 1.
    Ctrl-C exits with code 130.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code = command()
    except (GenexpError, OSError) as error:
        if SHOW_TRACEBACKS:
            raise
        sys.exit(f"{program}: {format_first_line(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)


def format_first_line(error: Exception) -> str:
    """Return the first line of the message of `error`, with the file name for an OSError."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return next(iter(str(error).splitlines()), repr(error))
