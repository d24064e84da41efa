"""What a user can say about a sweep as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genexp.errors import ConfigError
from genexp.sweep.manifest import FILE

BEFORE_JOBS = {"multirun.yaml", ".lock", "optuna.log"}  # what a sweep writes before its jobs


@dataclass
class SweepConfig:
    """The node `sweep` of conf/train.yaml."""

    fail_fast: bool
    resume: str | None  # a sweep's folder
    halving: dict[str, Any]


def require_positive(key: str, value: object) -> None:
    """Raise ConfigError unless a value is a whole number of at least 1, or null."""
    if value is not None and not (isinstance(value, int) and value > 0):
        raise ConfigError(f"{key}={value}: use a whole number of at least 1")


def resumed_sweep(arguments: list[str]) -> Path | None:
    """Return the folder in `sweep.resume=FOLDER`, or None. Raises ConfigError where it is no sweep's."""
    values = [word.partition("=")[2].strip("'\"") for word in arguments if word.startswith("sweep.resume=")]
    if not values or values[-1] == "null":
        return None
    folder = Path(values[-1])
    # A sweep that was killed before it had written down its jobs has begun none.
    begun = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not values[-1] or not folder.is_dir() or (FILE not in begun and begun - BEFORE_JOBS):
        raise ConfigError(f"sweep.resume={values[-1]} is no sweep's folder (it has no {FILE}); give one that is")
    return folder
