"""Whether a sweep lets jobs begin and go on: files say so, to every process and machine that sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genexp.sweep.manifest import SweepManifest

STOP_FILE = ".stop"


@dataclass(frozen=True)
class StopFile:
    """The gate that every job of a sweep comes through. It can be sent to another process."""

    sweep_dir: Path  # the sweep's
    started_at: float  # when, as files bear it: what is older is from an earlier try
    fail_fast: bool

    @property
    def should_stop(self) -> bool:
        """Return whether running jobs are to save and end."""
        return (self.sweep_dir / STOP_FILE).exists()

    @property
    def allows_new_jobs(self) -> bool:
        """Return whether one more job may begin."""
        return not self.should_stop and not (self.fail_fast and self._has_failed_job())

    def create(self) -> None:
        """Let no job begin or go on."""
        (self.sweep_dir / STOP_FILE).touch()

    def remove(self) -> None:
        """Forget that the sweep was stopped before."""
        (self.sweep_dir / STOP_FILE).unlink(missing_ok=True)

    def _has_failed_job(self) -> bool:
        statuses = SweepManifest(self.sweep_dir).read_statuses(self.started_at)
        return any(status.state == "failed" for status in statuses.values())
