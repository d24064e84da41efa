"""What a recorder is: something that writes down what happened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from genexp.snapshot import RunInfo, RunOutcome, Snapshot


class Recorder(ABC):
    """Writes part of a run's folder from snapshots.

    A file that only ever grows is named by `append_only`: each checkpoint notes the sizes of these
    files, and a resumed run cuts them back to the noted size before `open` is called, so that no step
    is missing or written twice.
    """

    @abstractmethod
    def open(self, run: RunInfo) -> None:
        """Get ready. `run.resumed_at` > 0 means that files may exist and are to be continued."""

    @abstractmethod
    def record(self, snapshot: Snapshot) -> None:
        """Write down a snapshot."""

    def flush(self) -> None:  # noqa: B027
        """Hand everything recorded so far to the operating system."""

    def append_only_files(self) -> list[Path]:
        """Return the files that only grow, as they are after `flush`."""
        return []

    def close(self, outcome: RunOutcome) -> None:  # noqa: B027
        """Finish; called once, however the run ended."""
