"""Paths and commands, as a user here would type them."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def shown_path(path: Path) -> str:
    """Return `path` as a user here would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def shown_command(program: str, *words: str) -> str:
    """Return a command line that works here: with the program's path where its name alone would not find it."""
    beside = Path(sys.executable).parent / program  # where this environment has its commands
    found = shutil.which(program)
    hidden = beside.is_file() and (found is None or Path(found) != beside)
    return shlex.join([shown_path(beside) if hidden else program, *words])
