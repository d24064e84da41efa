"""What a recorder is: something that writes down what happened."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from genexp.errors import GenexpError
from genexp.snapshot import RunInfo, RunOutcome, Snapshot

log = logging.getLogger(__name__)


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


class RecorderGroup:
    """Tells every recorder, in order."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = recorders
        self._open_recorders: list[Recorder] = []
        self.last_step = 0  # the last that was recorded
        self.test_metrics: dict[str, float] = {}  # the last scores

    def open(self, run: RunInfo) -> None:
        """Open all recorders."""
        self.last_step = run.start_step
        for recorder in self._recorders:
            recorder.open(run)
            self._open_recorders.append(recorder)

    def record(self, snapshot: Snapshot) -> None:
        """Hand a snapshot to all recorders."""
        self.last_step = snapshot.clock.step
        if snapshot.test:
            self.test_metrics = dict(snapshot.test)
        for recorder in self._recorders:
            recorder.record(snapshot)

    def close(self, outcome: RunOutcome) -> None:
        """Close all that could be opened. One that cannot (a full disk) does not keep the others from it."""
        for recorder in self._open_recorders:
            try:
                recorder.close(outcome)
            except (OSError, GenexpError) as error:
                log.warning("%s could not finish: %s", type(recorder).__name__, error)
