"""Configuration node `sweep`, checks of sweep settings, and hashes of the configurations of jobs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from genexp.config import to_plain_config
from genexp.errors import ConfigError
from genexp.run_dir.paths import (
    MANIFEST_FILE,
    PRE_MANIFEST_FILES,
    TEMPORARY_SUFFIX,
    unquote_value,
)

# Keys without influence on the results of a run. They are not hashed.
UNHASHED_KEYS = ("resume", "tags", "notes")
# Interpolations whose value depends on when or how the run was started.
START_DEPENDENT_PATTERN = re.compile(r"\$\{\s*(now|hydra)\s*:")


@dataclass
class SweepConfig:
    """Node `sweep` of conf/train.yaml."""

    fail_fast: bool  # start no further job after one has failed
    resume: str | None  # sweep directory to resume; None starts a new sweep
    halving: dict[str, Any]  # node `sweep.halving`, bound to `HalvingConfig` by the launcher


def require_positive_int_or_none(key: str, value: object) -> None:
    """Raise ConfigError unless `value` is None or an integer of at least 1; `key` names it in the message."""
    if value is not None and not (isinstance(value, int) and value > 0):
        raise ConfigError(f"{key}={value}: must be an integer of at least 1, or null.")


def parse_sweep_resume_dir(arguments: list[str]) -> Path | None:
    """Return the directory of the last `sweep.resume=DIR` argument, or None without one.

    Raises ConfigError if it is not a sweep directory.
    """
    values = [
        unquote_value(argument.partition("=")[2]) for argument in arguments if argument.startswith("sweep.resume=")
    ]
    if not values or values[-1] == "null":
        return None
    sweep_dir = Path(values[-1])
    # A sweep killed before it wrote its manifest has started no job. Its directory can be resumed too.
    paths = sweep_dir.iterdir() if sweep_dir.is_dir() else ()
    file_names = {path.name for path in paths if path.suffix != TEMPORARY_SUFFIX}
    if (
        not values[-1]
        or not sweep_dir.is_dir()
        or (MANIFEST_FILE not in file_names and file_names - PRE_MANIFEST_FILES)
    ):
        raise ConfigError(
            f"sweep.resume={values[-1]}: not a sweep directory (no {MANIFEST_FILE}). Use the directory of a sweep."
        )
    return sweep_dir


def hash_config(config: DictConfig, exclude: tuple[str, ...] = ()) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the resolved run configuration.

    The nodes `hydra` and `sweep`, `UNHASHED_KEYS` and the top-level keys in `exclude` are not part of it.
    Values interpolated from `now` or `hydra` count as None.
    """
    unresolved = to_plain_config(config, resolve=False)
    hashed = {
        key: _mask_start_dependent(unresolved[key], value)
        for key, value in to_plain_config(config).items()
        if key not in UNHASHED_KEYS + exclude
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def _mask_start_dependent(unresolved: Any, value: Any) -> Any:
    if isinstance(value, dict) and isinstance(unresolved, dict):
        return {key: _mask_start_dependent(unresolved[key], item) for key, item in value.items()}
    return None if isinstance(unresolved, str) and START_DEPENDENT_PATTERN.search(unresolved) else value
