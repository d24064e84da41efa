"""Recorder of checkpoints and best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from genexp.errors import ConfigError
from genexp.recorders.recorder import Recorder
from genexp.run_dir.checkpoint import get_checkpoint_path, list_checkpoints, measure_logs, save_checkpoint
from genexp.run_dir.files import remove_file, remove_temporary_files
from genexp.run_dir.paths import BEST_FILE, CHECKPOINTS_DIR
from genexp.snapshot import RunInfo, Snapshot


class CheckpointRecorder(Recorder):
    """Recorder of `checkpoints/`: the newest `max_to_keep` checkpoints and the best weights.

    It must come after all recorders that write logs, whose sizes a checkpoint stores. `best` is the best value and
    its step ({"value", "step"}) of the run that is resumed.
    """

    def __init__(self, *, max_to_keep: int, best: Mapping[str, Any] | None = None) -> None:
        self._max_to_keep = max_to_keep
        self._best: dict[str, Any] = dict(best) if best else {"value": None, "step": None}
        self._unsaved_best: dict[str, Any] | None = None

    def open(self, run: RunInfo) -> None:
        """Delete incomplete files of a killed process."""
        self._run = run
        remove_temporary_files(run.run_dir)

    def record(self, snapshot: Snapshot) -> None:
        """Update the best weights after an evaluation. Write a checkpoint if the snapshot has one."""
        if snapshot.test_metrics and snapshot.technique_state is not None:
            self._update_best(snapshot)
        if snapshot.checkpoint_state is not None:
            self._write(snapshot.checkpoint_state)

    def _update_best(self, snapshot: Snapshot) -> None:
        name = self._run.objective
        if name not in snapshot.test_metrics:
            raise ConfigError(
                f"trainer.objective={name} is no test metric of model={self._run.model_name}; "
                f"choose one of: {', '.join(snapshot.test_metrics)}"
            )
        value, best = snapshot.test_metrics[name], self._best["value"]
        sign = 1 if self._run.direction == "max" else -1
        if not math.isfinite(value) or (best is not None and sign * value <= sign * best):
            return
        assert snapshot.technique_state is not None
        self._best = {"value": value, "step": snapshot.clock.step}
        weights = {key: weight.detach().cpu().clone() for key, weight in snapshot.technique_state.items()}
        self._unsaved_best = {
            **self._best,
            "objective": name,
            "test": dict(snapshot.test_metrics),
            "technique": weights,
        }

    def _write(self, state: Mapping[str, Any]) -> None:
        run_dir = self._run.run_dir
        if self._unsaved_best is not None:
            save_checkpoint(run_dir / CHECKPOINTS_DIR / BEST_FILE, self._unsaved_best)
            self._unsaved_best = None
        content = {**state, "best": self._best, "log_offsets": measure_logs(run_dir)}
        save_checkpoint(get_checkpoint_path(run_dir, state["step"]), content)
        for stale in list_checkpoints(run_dir)[self._max_to_keep :]:
            remove_file(stale)
