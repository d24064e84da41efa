"""How a sweep stands at one moment, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from genexp.run_dir.status import RunStatus
from genexp.sweep.manifest import JobEntry

STATES = ("finished", "running", "failed", "stopped", "waiting")


@dataclass(frozen=True)
class SweepSummary:
    """All jobs of a sweep at one moment."""

    statuses: Mapping[JobEntry, RunStatus]
    expected_jobs: float | None = None  # how many whole jobs it comes to in the end, where not to all of these
    seconds_left: float | None = None

    def filter_by_state(self, state: str) -> dict[JobEntry, RunStatus]:
        """Return the jobs that are in a state."""
        return {entry: status for entry, status in self.statuses.items() if status.state == state}

    @property
    def total_jobs(self) -> float:
        """Return how many whole jobs there are to do."""
        return len(self.statuses) if self.expected_jobs is None else self.expected_jobs

    @property
    def remaining_jobs(self) -> float:
        """Return how many whole jobs are left to do; one that failed counts as done."""
        done = sum(1.0 if status.state == "failed" else status.fraction_done for status in self.statuses.values())
        return max(0.0, self.total_jobs - done)

    @property
    def counts_text(self) -> str:
        """Return how many jobs are in which state."""
        count_by_state = Counter(status.state for status in self.statuses.values())
        parts = [f"{count_by_state[state]} {state}" for state in STATES if count_by_state[state]]
        n_jobs = len(self.statuses)
        total_text = f" of {self.total_jobs:.0f}" if self.total_jobs > n_jobs else ""
        return f"{n_jobs}{total_text} job{'s' if max(n_jobs, self.total_jobs) > 1 else ''}: {', '.join(parts)}"

    @property
    def eta_text(self) -> str:
        """Return how long it will take yet, in words; nothing where that cannot be said."""
        return f"{timedelta(seconds=round(self.seconds_left))} left" if self.seconds_left else ""

    @property
    def best_lines(self) -> list[str]:
        """Return the best job in a line; a line an objective, where techniques have different ones."""
        leaders: dict[str, tuple[float, JobEntry]] = {}
        for entry, status in self.statuses.items():
            if status.value is None:
                continue
            leader = leaders.get(status.objective)
            sign = 1 if entry.direction == "max" else -1
            if leader is None or sign * status.value > sign * leader[0]:
                leaders[status.objective] = status.value, entry
        return [f"best {objective} {value:.4g} in {entry.name}" for objective, (value, entry) in leaders.items()]


def format_job(entry: JobEntry, status: RunStatus) -> str:
    """Return a job in a line."""
    parts = [entry.name, status.state]
    if status.state == "running":
        parts.append(f"{status.fraction_done:.0%}")
    if status.value is not None:
        parts.append(f"{status.objective} {status.value:.4g}")
    if status.error:
        parts.append(status.error)
    return "  ".join(parts)
