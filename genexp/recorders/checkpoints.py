"""Recorder of checkpoints and best weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from genexp.errors import ConfigError
from genexp.recorders.recorder import Recorder
from genexp.run_dir.checkpoint import (
    get_checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    measure_logs,
    save_checkpoint,
)
from genexp.run_dir.files import remove_file, remove_temporary_files
from genexp.run_dir.paths import BEST_FILE, CHECKPOINTS_DIR
from genexp.snapshot import RunInfo, RunOutcome, RunProgress, Snapshot


class CheckpointRecorder(Recorder):
    """Recorder of `checkpoints/`: the newest `max_to_keep` checkpoints and the best weights.

    It must come after all recorders that write logs, whose sizes a checkpoint stores. A finished run has no
    best.pt if its newest checkpoint has the best weights. `final_checkpoint` is trainer.final_checkpoint.
    """

    def __init__(self, *, max_to_keep: int, final_checkpoint: str = "full") -> None:
        self._max_to_keep, self._final_checkpoint = max_to_keep, final_checkpoint
        self._unsaved_best: dict[str, Any] | None = None

    def open(self, run: RunInfo) -> None:
        """Delete incomplete files and surplus checkpoints of a killed process. Restore best.pt of a finished run.

        Raises CheckpointError.
        """
        self._run, self._best_step = run, run.progress.best_step
        remove_temporary_files(run.run_dir, is_recursive=True)
        self._remove_surplus(run.completed_steps)
        path = run.run_dir / CHECKPOINTS_DIR / BEST_FILE
        if self._best_step == run.completed_steps and not path.is_file():
            state = load_checkpoint(get_checkpoint_path(run.run_dir, run.completed_steps))
            weights = state["average"] or state["technique"]
            save_checkpoint(path, self._build_best(run.progress, run.progress.test_metrics, weights))

    def record(self, snapshot: Snapshot) -> None:
        """Update the best weights after an evaluation. Write a checkpoint if the snapshot has one.

        Raises ConfigError if `trainer.objective` is not among the test metrics, and CheckpointError.
        """
        if snapshot.test_metrics and self._run.objective not in snapshot.test_metrics:
            raise ConfigError(
                f"trainer.objective={self._run.objective}: not a test metric of model={self._run.model_name}. "
                f"Use one of: {', '.join(snapshot.test_metrics)}."
            )
        if snapshot.technique_state is not None and snapshot.progress.best_step == snapshot.clock.step:
            weights = {key: weight.detach().cpu().clone() for key, weight in snapshot.technique_state.items()}
            self._unsaved_best = self._build_best(snapshot.progress, snapshot.test_metrics, weights)
        self._best_step = snapshot.progress.best_step
        if snapshot.checkpoint_state is not None:
            state = dict(snapshot.checkpoint_state)
            if snapshot.is_complete and self._final_checkpoint == "weights" and state["optimizers"]:
                state["optimizers"] = None
            if snapshot.is_complete and self._best_step == snapshot.clock.step:
                self._unsaved_best = None  # the checkpoint has these weights
            self._write(state, snapshot.progress)
            if snapshot.is_complete:
                self._remove_equal_best_file(snapshot.clock.step)

    def close(self, outcome: RunOutcome) -> None:
        """Remove the oldest checkpoint of a finished run, and best.pt if the newest one has the same weights.

        The oldest checkpoint was the reserve for a damaged newest one.
        """
        if outcome.state == "finished":
            self._max_to_keep = max(1, self._max_to_keep - 1)
            self._remove_surplus(outcome.step)
            self._remove_equal_best_file(outcome.step)

    def _remove_equal_best_file(self, last_step: int) -> None:
        """Remove best.pt if the checkpoint of the last step has the best weights."""
        run_dir = self._run.run_dir
        if self._best_step == last_step and get_checkpoint_path(run_dir, last_step).is_file():
            remove_file(run_dir / CHECKPOINTS_DIR / BEST_FILE)

    def _build_best(
        self, progress: RunProgress, test_metrics: Mapping[str, float], weights: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Return the content of best.pt."""
        return {
            "value": progress.best_value,
            "step": progress.best_step,
            "objective": self._run.objective,
            "test": dict(test_metrics),
            "technique": dict(weights),
        }

    def _write(self, state: Mapping[str, Any], progress: RunProgress) -> None:
        run_dir = self._run.run_dir
        if self._unsaved_best is not None:
            save_checkpoint(run_dir / CHECKPOINTS_DIR / BEST_FILE, self._unsaved_best)
            self._unsaved_best = None
        content = {**state, "progress": asdict(progress), "log_offsets": measure_logs(run_dir)}
        save_checkpoint(get_checkpoint_path(run_dir, state["step"]), content)
        self._remove_surplus(state["step"])

    def _remove_surplus(self, step: int) -> None:
        """Remove all but the newest `max_to_keep` checkpoints up to `step`, and those of a discarded future."""
        run_dir = self._run.run_dir
        newest = get_checkpoint_path(run_dir, step)
        paths = list_checkpoints(run_dir)
        kept = paths[paths.index(newest) :][: self._max_to_keep] if newest in paths else paths
        for path in paths:
            if path not in kept:
                remove_file(path)
