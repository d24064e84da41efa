"""What a user can say about a sweep as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genexp.errors import ConfigError
from genexp.run_dir.paths import LOCK_FILE
from genexp.sweep.manifest import MANIFEST_FILE

PRE_JOB_FILES = {"multirun.yaml", LOCK_FILE, "optuna.log"}  # what a sweep writes before its jobs


@dataclass
class SweepConfig:
    """The node `sweep` of conf/train.yaml."""

    fail_fast: bool
    resume: str | None  # a sweep's folder
    halving: dict[str, Any]


def require_positive_int(key: str, value: object) -> None:
    """Raise ConfigError unless a value is a whole number of at least 1, or null."""
    if value is not None and not (isinstance(value, int) and value > 0):
        raise ConfigError(f"{key}={value}: use a whole number of at least 1")


def parse_sweep_resume_dir(arguments: list[str]) -> Path | None:
    """Return the folder in `sweep.resume=FOLDER`, or None. Raises ConfigError where it is no sweep's."""
    values = [
        argument.partition("=")[2].strip("'\"") for argument in arguments if argument.startswith("sweep.resume=")
    ]
    if not values or values[-1] == "null":
        return None
    sweep_dir = Path(values[-1])
    # A sweep that was killed before it had written down its jobs has begun none.
    file_names = {path.name for path in sweep_dir.iterdir()} if sweep_dir.is_dir() else set()
    if (
        not values[-1]
        or not sweep_dir.is_dir()
        or (MANIFEST_FILE not in file_names and file_names - PRE_JOB_FILES)
    ):
        raise ConfigError(
            f"sweep.resume={values[-1]} is no sweep's folder (it has no {MANIFEST_FILE}); give one that is"
        )
    return sweep_dir
