"""Sweep manifest `sweep.json`: numbers, overrides and configuration hashes of all jobs."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from genexp.errors import ConfigError
from genexp.run_dir.files import write_json
from genexp.run_dir.paths import CONFIG_FILE, MANIFEST_FILE
from genexp.run_dir.status import RunStatus, read_status

# Keys without influence on the results of a run. They are not hashed.
UNHASHED_KEYS = ("resume", "tags", "notes")
# Interpolations whose value depends on when or how the run was started.
START_DEPENDENT_PATTERN = re.compile(r"\$\{\s*(now|hydra)\s*:")


def hash_config(config: DictConfig, exclude: tuple[str, ...] = ()) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the resolved run configuration.

    The nodes `hydra` and `sweep`, `UNHASHED_KEYS` and the top-level keys in `exclude` are left out.
    Values interpolated from `now` or `hydra` count as None.
    """
    unresolved = to_plain_config(config, resolve=False)
    hashed = {
        key: _mask_start_dependent(unresolved[key], value)
        for key, value in to_plain_config(config).items()
        if key not in UNHASHED_KEYS + exclude
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def to_plain_config(config: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """Return `config` as nested plain Python values, without the nodes `hydra` and `sweep`."""
    run_config = copy.deepcopy(config)
    with open_dict(run_config):
        run_config.pop("hydra", None)
        run_config.pop("sweep", None)
    values = OmegaConf.to_container(run_config, resolve=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _mask_start_dependent(unresolved: Any, value: Any) -> Any:
    if isinstance(value, dict) and isinstance(unresolved, dict):
        return {key: _mask_start_dependent(unresolved[key], item) for key, item in value.items()}
    return None if isinstance(unresolved, str) and START_DEPENDENT_PATTERN.search(unresolved) else value


@dataclass(frozen=True)
class JobEntry:
    """Job of a sweep in the manifest."""

    number: int  # also the name of its run directory
    digest: str  # result of `hash_config`
    overrides: tuple[str, ...]  # `key=value` overrides of this job that are not common to the sweep
    direction: str  # better direction of the objective: min or max

    @property
    def name(self) -> str:
        """Display name: the number and the overrides, such as `#2 seed=1`."""
        return " ".join((f"#{self.number}", *self.overrides))


class SweepManifest:
    """Jobs of a sweep and the file that stores them."""

    def __init__(self, sweep_dir: Path) -> None:
        """Read the manifest in `sweep_dir` if there is one. Raises ConfigError if it is damaged."""
        self.sweep_dir = sweep_dir
        self._path = sweep_dir / MANIFEST_FILE
        self._entries: dict[int, JobEntry] = {}
        self.halted_job_numbers: set[int] = set()  # numbers of the jobs that `SuccessiveHalving` stopped for good
        if self._path.exists():
            try:
                content = json.loads(self._path.read_text(encoding="utf-8"))
                jobs, self.halted_job_numbers = content["jobs"], set(content.get("halted", []))
                entries = [JobEntry(**{**job, "overrides": tuple(job["overrides"])}) for job in jobs]
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{self._path} is damaged; start the sweep anew") from None
            self._entries = {entry.number: entry for entry in entries}

    @property
    def entries(self) -> list[JobEntry]:
        """All jobs, sorted by number."""
        return [entry for _, entry in sorted(self._entries.items())]

    def get_run_dir(self, entry: JobEntry) -> Path:
        """Return the run directory of a job."""
        return self.sweep_dir / str(entry.number)

    def read_statuses(self, min_mtime: float) -> dict[JobEntry, RunStatus]:
        """Return the status of every job. `read_status` explains `min_mtime` (POSIX seconds).

        `min_mtime` does not apply to jobs that `SuccessiveHalving` stopped.
        """
        return {
            entry: read_status(
                self.get_run_dir(entry), 0.0 if entry.number in self.halted_job_numbers else min_mtime
            )
            for entry in self.entries
        }

    def register(self, new_entry: JobEntry) -> JobEntry:
        """Return the entry with the digest of `new_entry`; add `new_entry` if there is none.

        Raises ConfigError if its number belongs to another job, or its run directory already holds a run.
        """
        for entry in self.entries:
            if entry.digest == new_entry.digest:
                return entry
        existing = self._entries.get(new_entry.number)
        if existing is not None:
            old_overrides, new_overrides = " ".join(existing.overrides), " ".join(new_entry.overrides)
            difference = (
                f"is {old_overrides}, not {new_overrides}"
                if old_overrides != new_overrides
                else "had other settings"
            )
            raise ConfigError(
                f"sweep.resume={self.sweep_dir} is another sweep's: its job {new_entry.number} {difference}; "
                f"give the command that it was started with"
            )
        if (self.get_run_dir(new_entry) / CONFIG_FILE).exists():
            raise ConfigError(f"{self.get_run_dir(new_entry)} holds a run already; choose another hydra.sweep.dir")
        self._entries[new_entry.number] = new_entry
        return new_entry

    def write(self) -> None:
        """Write the manifest atomically. Call it before the first job of a batch starts."""
        content = {
            "format": 1,
            "jobs": [asdict(entry) for entry in self.entries],
            "halted": sorted(self.halted_job_numbers),
        }
        write_json(self._path, content, should_sync=True)
