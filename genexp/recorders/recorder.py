"""Base class of all recorders, and a group that calls several in order."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from genexp.errors import GenexpError
from genexp.snapshot import RunInfo, RunOutcome, Snapshot

log = logging.getLogger(__name__)


class Recorder(ABC):
    """Writer of some of the files in a run directory, from snapshots.

    `append_only_files` lists the files that only grow. Each checkpoint stores their sizes. A resumed run
    truncates them to these sizes before it calls `open`. So no step is missing or written twice.
    """

    @abstractmethod
    def open(self, run: RunInfo) -> None:
        """Prepare for recording. If `run.completed_steps` > 0, continue the files that exist."""

    @abstractmethod
    def record(self, snapshot: Snapshot) -> None:
        """Record a snapshot."""

    def flush(self) -> None:  # noqa: B027
        """Flush buffered output to the operating system."""

    def append_only_files(self) -> list[Path]:
        """Return the existing files that only grow. Called after `flush`."""
        return []

    def close(self, outcome: RunOutcome) -> None:  # noqa: B027
        """Finish the files. Called once, also after a failure."""


class RecorderGroup:
    """Ordered recorders that receive the same calls."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = recorders
        self._open_recorders: list[Recorder] = []
        self.last_step = 0  # last recorded step
        self.test_metrics: dict[str, float] = {}  # from the latest evaluation

    def open(self, run: RunInfo) -> None:
        """Open all recorders."""
        self.last_step = run.completed_steps
        for recorder in self._recorders:
            recorder.open(run)
            self._open_recorders.append(recorder)

    def record(self, snapshot: Snapshot) -> None:
        """Pass a snapshot to all recorders."""
        self.last_step = snapshot.clock.step
        if snapshot.test_metrics:
            self.test_metrics = dict(snapshot.test_metrics)
        for recorder in self._recorders:
            recorder.record(snapshot)

    def close(self, outcome: RunOutcome) -> None:
        """Close each opened recorder. A failure of one (a full disk) is logged and the others are still closed."""
        for recorder in self._open_recorders:
            try:
                recorder.close(outcome)
            except (OSError, GenexpError) as error:
                log.warning("%s could not finish: %s", type(recorder).__name__, error)
