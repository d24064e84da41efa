"""Which jobs a sweep has: `sweep.json` in its folder, written before the first of them begins."""

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
from genexp.run_dir.paths import CONFIG_FILE
from genexp.run_dir.status import RunStatus, read_status

MANIFEST_FILE = "sweep.json"
# Not what a job computes: how it was started, and words about it.
METADATA_KEYS = ("resume", "tags", "notes")
START_DEPENDENT_PATTERN = re.compile(r"\$\{\s*(now|hydra)\s*:")


def hash_config(config: DictConfig, exclude: tuple[str, ...] = ()) -> str:
    """Return a hash of what a job computes, `but` some of it. What depends on its start is left out."""
    raw = to_plain_config(config, resolve=False)
    hashed = {
        key: _mask_start_dependent(raw[key], value)
        for key, value in to_plain_config(config).items()
        if key not in METADATA_KEYS + exclude
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def to_plain_config(config: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """Return what a job is configured with, as plain values: Hydra's and the sweep's own parts are not of it."""
    run_config = copy.deepcopy(config)
    with open_dict(run_config):
        run_config.pop("hydra", None)
        run_config.pop("sweep", None)
    values = OmegaConf.to_container(run_config, resolve=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _mask_start_dependent(raw: Any, value: Any) -> Any:
    if isinstance(value, dict) and isinstance(raw, dict):
        return {key: _mask_start_dependent(raw[key], item) for key, item in value.items()}
    return None if isinstance(raw, str) and START_DEPENDENT_PATTERN.search(raw) else value


@dataclass(frozen=True)
class JobEntry:
    """A job as the ledger has it."""

    number: int
    digest: str
    overrides: tuple[str, ...]  # what tells it from the others, as a user would type it
    direction: str  # of its objective: min or max

    @property
    def name(self) -> str:
        """Return the job in words."""
        return " ".join((f"#{self.number}", *self.overrides))


class SweepManifest:
    """The jobs of a sweep by number."""

    def __init__(self, sweep_dir: Path) -> None:
        """Read the ledger in `folder`, which may have none yet. Raises ConfigError where it is damaged."""
        self.sweep_dir = sweep_dir
        self._path = sweep_dir / MANIFEST_FILE
        self._entries: dict[int, JobEntry] = {}
        self.halted_jobs: set[int] = set()  # jobs that are to go no further, by number: see `Halving`
        if self._path.exists():
            try:
                content = json.loads(self._path.read_text(encoding="utf-8"))
                jobs, self.halted_jobs = content["jobs"], set(content.get("halted", []))
                entries = [JobEntry(**{**job, "overrides": tuple(job["overrides"])}) for job in jobs]
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{self._path} is damaged; start the sweep anew") from None
            self._entries = {entry.number: entry for entry in entries}

    @property
    def entries(self) -> list[JobEntry]:
        """Return all jobs."""
        return [entry for _, entry in sorted(self._entries.items())]

    def get_run_dir(self, entry: JobEntry) -> Path:
        """Return where a job runs."""
        return self.sweep_dir / str(entry.number)

    def read_statuses(self, min_mtime: float) -> dict[JobEntry, RunStatus]:
        """Return where every job stands; see `read_standing`."""
        return {
            entry: read_status(self.get_run_dir(entry), 0.0 if entry.number in self.halted_jobs else min_mtime)
            for entry in self.entries
        }

    def register(self, new_entry: JobEntry) -> JobEntry:
        """Return `wanted` with the number that its digest has here already; else its own, which must be free."""
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
        """Write down all jobs; to be done before they begin."""
        tmp_path = self._path.with_suffix(".json.tmp")
        content = {
            "format": 1,
            "jobs": [asdict(entry) for entry in self.entries],
            "halted": sorted(self.halted_jobs),
        }
        tmp_path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        tmp_path.replace(self._path)
