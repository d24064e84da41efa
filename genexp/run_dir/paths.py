"""Names of the files in a run directory, and paths and commands as messages print them."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

CONFIG_FILE = "config.yaml"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"  # written by genexp-evaluate
REPORT_FILE = "report.html"  # of a run, and of a sweep
LOCK_FILE = ".lock"
CHECKPOINTS_DIR = "checkpoints"
FIGURES_DIR = "figures"
TENSORBOARD_DIR = "tensorboard"
# Written by Hydra.
HYDRA_DIR = ".hydra"
LOG_FILE = "train.log"


def format_path(path: Path) -> str:
    """Return `path` as a user here would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def format_command(program: str, *arguments: str) -> str:
    """Return a command line that works here: with the program's path where its name alone would not find it."""
    env_program = Path(sys.executable).parent / program  # where this environment has its commands
    program_on_path = shutil.which(program)
    needs_full_path = env_program.is_file() and (program_on_path is None or Path(program_on_path) != env_program)
    return shlex.join([format_path(env_program) if needs_full_path else program, *arguments])
