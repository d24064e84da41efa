"""Whether a sweep lets jobs begin and go on: files say so, to every process and machine that sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genexp.sweep.manifest import Ledger

STOP = ".stop"


@dataclass(frozen=True)
class Gate:
    """The gate that every job of a sweep comes through. It can be sent to another process."""

    folder: Path  # the sweep's
    begun: float  # when, as files bear it: what is older is from an earlier try
    fail_fast: bool

    @property
    def stops(self) -> bool:
        """Return whether running jobs are to save and end."""
        return (self.folder / STOP).exists()

    @property
    def is_open(self) -> bool:
        """Return whether one more job may begin."""
        return not self.stops and not (self.fail_fast and self._has_failed())

    def stop(self) -> None:
        """Let no job begin or go on."""
        (self.folder / STOP).touch()

    def open(self) -> None:
        """Forget that the sweep was stopped before."""
        (self.folder / STOP).unlink(missing_ok=True)

    def _has_failed(self) -> bool:
        standings = Ledger(self.folder).standings(self.begun)
        return any(standing.state == "failed" for standing in standings.values())
