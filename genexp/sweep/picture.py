"""How a sweep stands at one moment, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from genexp.run_dir.status import RunStatus
from genexp.sweep.manifest import Entry

STATES = ("finished", "running", "failed", "stopped", "waiting")


@dataclass(frozen=True)
class Picture:
    """All jobs of a sweep at one moment."""

    standings: Mapping[Entry, RunStatus]
    expected: float | None = None  # how many whole jobs it comes to in the end, where not to all of these
    seconds_left: float | None = None

    def having(self, state: str) -> dict[Entry, RunStatus]:
        """Return the jobs that are in a state."""
        return {entry: standing for entry, standing in self.standings.items() if standing.state == state}

    @property
    def total(self) -> float:
        """Return how many whole jobs there are to do."""
        return len(self.standings) if self.expected is None else self.expected

    @property
    def ahead(self) -> float:
        """Return how many whole jobs are left to do; one that failed counts as done."""
        done = sum(1.0 if standing.state == "failed" else standing.fraction_done for standing in self.standings.values())
        return max(0.0, self.total - done)

    @property
    def counts(self) -> str:
        """Return how many jobs are in which state."""
        number = Counter(standing.state for standing in self.standings.values())
        parts = [f"{number[state]} {state}" for state in STATES if number[state]]
        jobs = len(self.standings)
        of = f" of {self.total:.0f}" if self.total > jobs else ""
        return f"{jobs}{of} job{'s' if max(jobs, self.total) > 1 else ''}: {', '.join(parts)}"

    @property
    def left(self) -> str:
        """Return how long it will take yet, in words; nothing where that cannot be said."""
        return f"{timedelta(seconds=round(self.seconds_left))} left" if self.seconds_left else ""

    @property
    def best(self) -> list[str]:
        """Return the best job in a line; a line an objective, where techniques have different ones."""
        leaders: dict[str, tuple[float, Entry]] = {}
        for entry, standing in self.standings.items():
            if standing.value is None:
                continue
            leader = leaders.get(standing.objective)
            sign = 1 if entry.direction == "max" else -1
            if leader is None or sign * standing.value > sign * leader[0]:
                leaders[standing.objective] = standing.value, entry
        return [f"best {objective} {value:.4g} in {entry.name}" for objective, (value, entry) in leaders.items()]


def in_words(entry: Entry, standing: RunStatus) -> str:
    """Return a job in a line."""
    said = [entry.name, standing.state]
    if standing.state == "running":
        said.append(f"{standing.fraction_done:.0%}")
    if standing.value is not None:
        said.append(f"{standing.objective} {standing.value:.4g}")
    if standing.error:
        said.append(standing.error)
    return "  ".join(said)
