"""Configuration node `sweep`, checks of sweep settings, and hashes of the configurations of jobs."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from genexp.config import to_plain_config
from genexp.errors import ConfigError
from genexp.run_dir.paths import MANIFEST_FILE, PRE_MANIFEST_FILES, TEMPORARY_SUFFIX, unquote_value

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


class JobComposer:
    """Composer of the configurations of a sweep's jobs.

    Hydra takes a tenth of a second for a job. It composes only the first of the jobs whose overrides differ in
    plain values alone. The others are copies of it with their own values.
    """

    def __init__(self, loader: ConfigLoader, sweep_config: DictConfig) -> None:
        """Compose by `loader`; `sweep_config` is the configuration of the whole sweep."""
        self._loader, self._sweep_config = loader, sweep_config
        self._parser = OverridesParser.create(config_loader=loader)
        self._groups = set(loader.list_groups(""))
        self._templates: dict[tuple[str, ...], bytes] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration that Hydra composes for the overrides of a job. Raises HydraException."""
        parsed = self._parser.parse_overrides(list(overrides))
        value_overrides = [override for override in parsed if self._sets_value(override)]
        template_key = tuple(
            override.key_or_group if self._sets_value(override) else str(override.input_line)
            for override in parsed
        )
        if template_key not in self._templates:
            config = self._loader.load_sweep_config(self._sweep_config, list(overrides))
            self._templates[template_key] = pickle.dumps(config)
            return config
        config = pickle.loads(self._templates[template_key])
        assert isinstance(config, DictConfig)
        OmegaConf.copy_cache(from_config=self._sweep_config, to_config=config)
        for override in value_overrides:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        task_overrides = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in task_overrides]
        dirname = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            task_overrides, dirname.exclude_keys, dirname.item_sep, dirname.kv_sep
        )
        return config

    def _sets_value(self, override: Override) -> bool:
        """Return True if an override sets an existing key to a number, text, boolean or null."""
        key = override.key_or_group
        return (
            override.type is OverrideType.CHANGE
            and override.package is None
            and "/" not in key
            and key not in self._groups
            and not override.is_hydra_override()
            and isinstance(override.value(), bool | int | float | str | None)
        )


class JobChecker:
    """Checks of the configurations of a sweep's jobs.

    Configurations that differ in their valid seeds alone are checked once.
    """

    def __init__(self) -> None:
        self._checked: set[str] = set()  # configurations without their seeds, as text

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise ConfigError unless `values`, a result of `to_plain_config`, is a valid configuration."""
        from genexp.runs.config import MAX_SEED, bind_experiment

        seed = values.get("seed")
        key = repr({**values, "seed": None})
        if key in self._checked and type(seed) is int and 0 <= seed <= MAX_SEED:
            return
        bind_experiment(values)
        self._checked.add(key)


def hash_config(config: DictConfig, exclude: tuple[str, ...] = (), values: Mapping[str, Any] | None = None) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the resolved run configuration.

    The nodes `hydra` and `sweep`, `UNHASHED_KEYS` and the top-level keys in `exclude` are not part of it.
    Values interpolated from `now` or `hydra` count as None. `values` is `to_plain_config(config)`, if it is known.
    """
    unresolved = to_plain_config(config, resolve=False)
    hashed = {
        key: _mask_start_dependent(unresolved[key], value)
        for key, value in (to_plain_config(config) if values is None else values).items()
        if key not in UNHASHED_KEYS + exclude
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def _mask_start_dependent(unresolved: Any, value: Any) -> Any:
    if isinstance(value, dict) and isinstance(unresolved, dict):
        return {key: _mask_start_dependent(unresolved[key], item) for key, item in value.items()}
    return None if isinstance(unresolved, str) and START_DEPENDENT_PATTERN.search(unresolved) else value
