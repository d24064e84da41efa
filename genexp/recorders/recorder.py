"""Base class of all recorders, and a group that calls several in order."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from genexp.snapshot import RunInfo, RunOutcome, Snapshot

log = logging.getLogger(__name__)


class Recorder(ABC):
    """Writer of some of the files in a run directory, from snapshots.

    A checkpoint stores the sizes of the logs, which only grow: see `genexp.run_dir.checkpoint.measure_logs`. A
    resumed run truncates them to these sizes before it calls `open`. So no step is missing or written twice.
    """

    packages: ClassVar[
        tuple[str, ...]
    ] = ()  # that must be installed; the name of the first one is that of the extra

    @abstractmethod
    def open(self, run: RunInfo) -> None:
        """Prepare for recording. If `run.completed_steps` > 0, continue the files that exist."""

    @abstractmethod
    def record(self, snapshot: Snapshot) -> None:
        """Record a snapshot."""

    def flush(self) -> None:  # noqa: B027
        """Flush buffered output to the operating system, before a checkpoint stores the sizes of the logs."""

    def close(self, outcome: RunOutcome) -> None:  # noqa: B027
        """Finish the files. Called once, also after a failure."""

    def confirm(self, outcome: RunOutcome) -> None:  # noqa: B027
        """Called after all recorders are closed, with the outcome: "failed" if one of them could not finish."""


class RecorderGroup:
    """Ordered recorders that receive the same calls. The recorder of checkpoints is the last one."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = recorders
        self._open_recorders: list[Recorder] = []
        self._last_step = 0  # last recorded step

    def open(self, run: RunInfo) -> None:
        """Open all recorders."""
        self._last_step = run.completed_steps
        for recorder in self._recorders:
            recorder.open(run)
            self._open_recorders.append(recorder)

    def record(self, snapshot: Snapshot) -> None:
        """Pass a snapshot to all recorders."""
        self._last_step = snapshot.clock.step
        for recorder in self._recorders:
            recorder.record(snapshot)
            if snapshot.checkpoint_state is not None:
                recorder.flush()

    def close(self, outcome: RunOutcome) -> None:
        """Close each opened recorder. If one cannot finish, the others are still closed, and the run has failed.

        Raises the first error of a run that had not failed before.
        """
        errors = self._call_each(lambda recorder: recorder.close(outcome))
        if errors and outcome.state != "failed":
            outcome = RunOutcome("failed", outcome.step, error=format_error(errors[0]))
            self._call_each(lambda recorder: recorder.confirm(outcome))
            raise errors[0]
        self._call_each(lambda recorder: recorder.confirm(outcome))

    def _call_each(self, call: Callable[[Recorder], None]) -> list[Exception]:
        """Call a function with each opened recorder, log its errors and return them."""
        errors: list[Exception] = []
        for recorder in self._open_recorders:
            try:
                call(recorder)
            except Exception as error:
                log.warning("%s failed to finish: %s", type(recorder).__name__, format_error(error))
                errors.append(error)
        return errors

    def close_failed(self, error: BaseException) -> None:
        """Close the recorders of a run that `error` ended after the last recorded step."""
        self.close(RunOutcome("failed", self._last_step, error=format_error(error)))


def format_error(error: BaseException) -> str:
    """Return the message of an error, or its class name if it has none or is not an Exception."""
    return str(error) if isinstance(error, Exception) and str(error) else type(error).__name__
