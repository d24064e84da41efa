"""Keeps the newest checkpoints and the best weights, and the ledger that ties logs to checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genexp.errors import CheckpointError, ConfigError
from genexp.recorders.recorder import Recorder
from genexp.run_dir.checkpoint import BEST_FILE, CHECKPOINTS_DIR, checkpoint_path, list_checkpoints, save
from genexp.snapshot import RunInfo, Snapshot


class Checkpoints(Recorder):
    """Writes `checkpoints/`. Must be told last: its ledger speaks of what the `others` have written."""

    def __init__(self, others: Sequence[Recorder], *, keep: int, best: Mapping[str, Any] | None = None) -> None:
        self._others = others
        self._keep = keep
        self._best: dict[str, Any] = dict(best) if best else {"value": None, "step": None}
        self._unsaved_best: dict[str, Any] | None = None

    def open(self, run: RunInfo) -> None:
        self._run = run
        for stale in (run.run_dir / CHECKPOINTS_DIR).glob("*.tmp"):
            stale.unlink()

    def record(self, snapshot: Snapshot) -> None:
        if snapshot.test and snapshot.weights is not None:
            self._judge(snapshot)
        if snapshot.checkpoint is not None:
            self._write(snapshot.checkpoint)

    def _judge(self, snapshot: Snapshot) -> None:
        name = self._run.objective
        if name not in snapshot.test:
            raise ConfigError(
                f"trainer.objective={name} is no test metric of model={self._run.model}; "
                f"choose one of: {', '.join(snapshot.test)}"
            )
        value, best = snapshot.test[name], self._best["value"]
        sign = 1 if self._run.direction == "max" else -1
        if not math.isfinite(value) or (best is not None and sign * value <= sign * best):
            return
        assert snapshot.weights is not None
        self._best = {"value": value, "step": snapshot.clock.step}
        weights = {key: weight.detach().cpu().clone() for key, weight in snapshot.weights.items()}
        self._unsaved_best = {**self._best, "objective": name, "test": dict(snapshot.test), "technique": weights}

    def _write(self, state: Mapping[str, Any]) -> None:
        folder = self._run.run_dir
        for other in self._others:
            other.flush()
        if self._unsaved_best is not None:
            save(folder / CHECKPOINTS_DIR / BEST_FILE, self._unsaved_best)
            self._unsaved_best = None
        ledger = measure(folder, [path for other in self._others for path in other.append_only()])
        save(checkpoint_path(folder, state["step"]), {**state, "best": self._best, "ledger": ledger})
        for old in list_checkpoints(folder)[self._keep :]:
            old.unlink()


def measure(folder: Path, files: Sequence[Path]) -> dict[str, int]:
    """Return the size in bytes of each file, under its path relative to `folder`."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def cut_back(folder: Path, ledger: Mapping[str, int]) -> None:
    """Make the growing files of a run what they were when `ledger` was measured.

    A file the ledger does not know was begun later, and goes. Raises CheckpointError where one is
    missing or shorter than noted.
    """
    for name, size in ledger.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size < size:
            raise CheckpointError(f"{path} is shorter than its checkpoint notes: a part of the run is lost")
        with path.open("r+b") as file:
            file.truncate(size)
    grown = [*folder.glob("metrics.jsonl"), *folder.glob("*.gif"), *(folder / "tensorboard").glob("events.*")]
    for path in grown:
        if path.relative_to(folder).as_posix() not in ledger:
            path.unlink()
