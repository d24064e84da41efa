"""All recorders of a run as one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from genexp.errors import GenexpError
from genexp.recorders.recorder import Recorder
from genexp.snapshot import RunInfo, RunOutcome, Snapshot

log = logging.getLogger(__name__)


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
