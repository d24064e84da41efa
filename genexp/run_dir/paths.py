"""Names of the files in a run directory, and formatting of paths and commands for messages."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

CONFIG_FILE = "config.yaml"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"  # written by genexp-evaluate
REPORT_FILE = "report.html"  # one in each run directory and one in each sweep directory
LOCK_FILE = ".lock"
CHECKPOINTS_DIR = "checkpoints"
FIGURES_DIR = "figures"
TENSORBOARD_DIR = "tensorboard"
# These two are written by Hydra.
HYDRA_DIR = ".hydra"
LOG_FILE = "train.log"


def format_path(path: Path) -> str:
    """Return `path` relative to the working directory if it lies below it, else unchanged."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def format_command(program: str, *arguments: str) -> str:
    """Return a shell command line that runs `program` of this Python environment.

    The program's path is used if its name alone would not find that program on `PATH`.
    """
    env_program = Path(sys.executable).parent / program  # the scripts folder of this Python environment
    program_on_path = shutil.which(program)
    needs_full_path = env_program.is_file() and (program_on_path is None or Path(program_on_path) != env_program)
    return shlex.join([format_path(env_program) if needs_full_path else program, *arguments])
