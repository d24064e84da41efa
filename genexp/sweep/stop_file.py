"""Stop file shared by all processes and machines of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genexp.run_dir.manifest import SweepManifest
from genexp.run_dir.paths import STOP_FILE


@dataclass(frozen=True)
class StopFile:
    """Stop file of one sweep, and the rule for starting jobs. Picklable: launchers send it to worker processes."""

    sweep_dir: Path
    started_at: float  # POSIX seconds; status files older than this belong to an earlier attempt
    fail_fast: bool  # a failed job prevents further jobs from starting

    @property
    def should_stop(self) -> bool:
        """True if running jobs should save a checkpoint and exit."""
        return (self.sweep_dir / STOP_FILE).exists()

    @property
    def allows_new_jobs(self) -> bool:
        """False once the sweep was stopped, or a job failed under `fail_fast`."""
        return not self.should_stop and not (self.fail_fast and self._has_failed_job())

    def create(self) -> None:
        """Create the stop file: running jobs stop, and no further job starts."""
        (self.sweep_dir / STOP_FILE).touch()

    def remove(self) -> None:
        """Remove the stop file of an earlier attempt, if there is one."""
        (self.sweep_dir / STOP_FILE).unlink(missing_ok=True)

    def _has_failed_job(self) -> bool:
        statuses = SweepManifest(self.sweep_dir).read_statuses(self.started_at)
        return any(status.state == "failed" for status in statuses.values())
