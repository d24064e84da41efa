"""Checkpoint files of finished runs: the best weights are stored once, with or without optimizer state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genexp.recorders.checkpoints import CheckpointRecorder
from genexp.run_dir.checkpoint import get_checkpoint_path, load_checkpoint
from genexp.runs.resume import load_progress
from genexp.snapshot import RunInfo, RunOutcome
from tests.support.assertions import assert_same
from tests.support.snapshots import SnapshotMaker, make_run_info


def record_step(recorder: CheckpointRecorder, maker: SnapshotMaker, step: int, psnr: float, **fields: Any) -> None:
    """Record an evaluation and a checkpoint. The averaged weights are those that were evaluated."""
    weights = {"weight": torch.full((2,), float(step))}
    state = {"step": step, "technique": {"weight": torch.zeros(2)}, "average": weights, "optimizers": {"vae": [1]}}
    metrics = {"psnr": psnr, "loss": 1 / psnr}
    recorder.record(
        maker.make(step, test_metrics=metrics, technique_state=weights, checkpoint_state=state, **fields)
    )


def open_recorder(run: RunInfo, **options: Any) -> tuple[CheckpointRecorder, SnapshotMaker]:
    recorder = CheckpointRecorder(max_to_keep=2, **options)
    recorder.open(run)
    return recorder, SnapshotMaker(run)


def test_best_weights_of_a_finished_run_are_stored_once(tmp_path: Path) -> None:
    run, best_path = make_run_info(tmp_path), tmp_path / "checkpoints" / "best.pt"
    recorder, maker = open_recorder(run)
    record_step(recorder, maker, 10, psnr=20.0)
    record_step(recorder, maker, 20, psnr=30.0, is_complete=True)
    recorder.close(RunOutcome("finished", 20))
    newest = get_checkpoint_path(tmp_path, 20)
    assert list(best_path.parent.iterdir()) == [newest]
    # The same run is extended, and does not improve.
    progress = load_progress(load_checkpoint(newest))
    recorder, maker = open_recorder(make_run_info(tmp_path, completed_steps=20, progress=progress))
    best = load_checkpoint(best_path)
    assert (best["step"], best["value"], best["technique"]["weight"].tolist()) == (20, 30.0, [20, 20])
    assert best["test"]["psnr"] == 30.0
    record_step(recorder, maker, 30, psnr=25.0, is_complete=True)
    recorder.close(RunOutcome("finished", 30))
    assert set(best_path.parent.iterdir()) == {best_path, get_checkpoint_path(tmp_path, 30)}
    assert_same(load_checkpoint(best_path), best)


def test_best_weights_of_a_stopped_run_are_kept(tmp_path: Path) -> None:
    recorder, maker = open_recorder(make_run_info(tmp_path))
    record_step(recorder, maker, 10, psnr=20.0)
    recorder.close(RunOutcome("stopped", 10))
    assert (tmp_path / "checkpoints" / "best.pt").is_file()


@pytest.mark.parametrize("is_complete", [False, True])
def test_optimizer_state_is_left_out_of_the_last_checkpoint_only(is_complete: bool, tmp_path: Path) -> None:
    recorder, maker = open_recorder(make_run_info(tmp_path), final_checkpoint="weights")
    record_step(recorder, maker, 10, psnr=20.0, is_complete=is_complete)
    optimizers = load_checkpoint(get_checkpoint_path(tmp_path, 10))["optimizers"]
    assert optimizers == (None if is_complete else {"vae": [1]})
