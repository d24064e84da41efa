"""Sweep manifest `sweep.json`: numbers, overrides and configuration hashes of all jobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from genexp.errors import ConfigError, DataError
from genexp.run_dir.files import build_from_json, read_json, write_json
from genexp.run_dir.paths import CONFIG_FILE, MANIFEST_FILE, format_path
from genexp.run_dir.status import RunStatus, read_job_status


@dataclass(frozen=True)
class JobEntry:
    """Job of a sweep in the manifest."""

    number: int  # index in the sweep, from 0; also the name of its run directory
    digest: str  # hash of the configuration
    overrides: tuple[str, ...]  # `key=value` overrides of this job that are not common to the sweep
    direction: Literal["min", "max"]  # better direction of the objective

    @property
    def name(self) -> str:
        """Display name: the number and the overrides, such as `#2 seed=1`."""
        return " ".join((f"#{self.number}", *self.overrides))


@dataclass(frozen=True)
class ManifestContent:
    """Schema of `sweep.json`."""

    jobs: tuple[JobEntry, ...]
    halted: tuple[int, ...] = ()  # numbers of the jobs that successive halving stopped and will not continue
    format: int = 1


class SweepManifest:
    """Jobs of a sweep and the file that stores them."""

    def __init__(self, sweep_dir: Path) -> None:
        """Read the manifest in `sweep_dir` if there is one. Raises DataError if it is damaged."""
        self.sweep_dir = sweep_dir
        self._path = sweep_dir / MANIFEST_FILE
        try:
            content = build_from_json(ManifestContent, read_json(self._path), self._path)
        except FileNotFoundError:
            content = ManifestContent(jobs=())
        self._entries = {entry.number: entry for entry in content.jobs}
        self.halted_job_numbers = set(content.halted)
        if len(self._entries) < len(content.jobs) or any(number < 0 for number in self._entries):
            raise DataError(
                f"{format_path(self._path)}: damaged (repeated or negative job number). Restore or delete it."
            )

    @property
    def entries(self) -> list[JobEntry]:
        """All jobs, sorted by number."""
        return [entry for _, entry in sorted(self._entries.items())]

    def get_run_dir(self, entry: JobEntry) -> Path:
        """Return the run directory of a job."""
        return self.sweep_dir / str(entry.number)

    def read_statuses(self, min_mtime: float) -> dict[JobEntry, RunStatus]:
        """Return the status of every job. `read_job_status` explains `min_mtime` (POSIX seconds).

        `min_mtime` does not apply to jobs that successive halving stopped.
        """
        return {
            entry: read_job_status(
                self.get_run_dir(entry), 0.0 if entry.number in self.halted_job_numbers else min_mtime
            )
            for entry in self.entries
        }

    def register(self, new_entry: JobEntry) -> JobEntry:
        """Return the entry with the digest of `new_entry`. Add `new_entry` if no entry has its digest.

        Raises ConfigError if its number belongs to another job, or its directory already contains a run.
        """
        for entry in self.entries:
            if entry.digest == new_entry.digest:
                return entry
        existing = self._entries.get(new_entry.number)
        if existing is not None:
            old_overrides, new_overrides = " ".join(existing.overrides), " ".join(new_entry.overrides)
            difference = (
                f"was {old_overrides}, now {new_overrides}"
                if old_overrides != new_overrides
                else "had other values"
            )
            raise ConfigError(
                f"sweep.resume={self.sweep_dir}: not the same sweep (job {new_entry.number} {difference}). "
                f"Use the command that started it."
            )
        if (self.get_run_dir(new_entry) / CONFIG_FILE).exists():
            raise ConfigError(
                f"hydra.sweep.dir={self.sweep_dir}: already contains run {new_entry.number}. Use another one."
            )
        self._entries[new_entry.number] = new_entry
        return new_entry

    def write(self) -> None:
        """Write the manifest atomically. Call it before the first job of a batch starts."""
        content = ManifestContent(tuple(self.entries), tuple(sorted(self.halted_job_numbers)))
        write_json(self._path, asdict(content), should_sync=True)
