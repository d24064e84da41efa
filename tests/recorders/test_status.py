"""Recorder of `status.json`: content, throttling, resumption and damage."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from genexp.recorders.status import StatusRecorder
from genexp.run_dir import files
from genexp.snapshot import Curve, RunOutcome
from tests.support.command import load_status
from tests.support.snapshots import FINISHED_OUTCOME, SnapshotMaker, make_run_info, make_snapshot


def test_status_is_running_from_the_start(tmp_path: Path) -> None:
    StatusRecorder().open(make_run_info(tmp_path))
    status = load_status(tmp_path)
    assert (status["state"], status["step"], status["total_steps"]) == ("running", 0, 40)
    assert (status["model"], status["dataset"]) == ("vae", "digits")
    assert status["started"].endswith("+00:00")


def test_status_has_last_metrics_best_score_and_unique_warnings(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    status, maker = StatusRecorder(interval_seconds=0), SnapshotMaker(run)
    status.open(run)
    status.record(maker.make(10, test_metrics={"psnr": 12.0}, warnings=("collapse",)))
    status.record(maker.make(20, test_metrics={"psnr": 11.0}, warnings=("collapse", "blow-up")))
    found = load_status(tmp_path)
    assert found["best"] == {"value": 12.0, "step": 10}
    assert found["test"] == {"psnr": 11.0}
    assert found["warnings"] == ["collapse", "blow-up"]
    assert (found["step"], found["epoch"]) == (20, 2)
    assert set(found["train"]) == {"loss", "kl"}


def test_writing_is_throttled_until_the_run_ends(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    status = StatusRecorder(interval_seconds=60)
    status.open(run)
    status.record(make_snapshot(10, run))
    assert load_status(tmp_path)["step"] == 0
    status.close(FINISHED_OUTCOME)
    assert (load_status(tmp_path)["state"], load_status(tmp_path)["step"]) == ("running", 40)
    status.confirm(FINISHED_OUTCOME)
    assert (load_status(tmp_path)["state"], load_status(tmp_path)["step"]) == ("finished", 40)
    assert list(tmp_path.iterdir()) == [tmp_path / "status.json"]


def test_failed_status_has_the_error_and_no_nan(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    status = StatusRecorder()
    status.open(run)
    broken = {"loss": Curve(np.array([1]), np.array([np.nan], np.float32))}
    status.record(make_snapshot(1, run, train_curves=broken))
    status.close(RunOutcome("failed", 1, error="the loss became nan"))
    found = load_status(tmp_path)
    assert (found["state"], found["error"]) == ("failed", "the loss became nan")
    assert found["train"] == {"loss": None}


def test_a_resumed_run_has_the_progress_of_its_checkpoint_and_its_previous_times(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    first, maker = StatusRecorder(), SnapshotMaker(run)
    first.open(run)
    snapshot = maker.make(10, test_metrics={"psnr": 12.0}, warnings=("collapse",))
    first.record(snapshot)
    first.record(maker.make(20, test_metrics={"psnr": 13.0}, warnings=("blow-up",)))  # after the checkpoint
    first.close(RunOutcome("stopped", 20))
    before = load_status(tmp_path)
    assert before["cpu_seconds"] > 0
    second = StatusRecorder()
    second.open(make_run_info(tmp_path, completed_steps=10, progress=snapshot.progress))
    found = load_status(tmp_path)
    assert (found["state"], found["step"], found["epoch"]) == ("running", 10, 1)
    assert (found["test"], found["best"]) == ({"psnr": 12.0}, {"value": 12.0, "step": 10})
    assert found["train"] == pytest.approx(snapshot.progress.train_means)
    assert (found["warnings"], found["started"]) == (["collapse"], before["started"])
    assert found["cpu_seconds"] >= before["cpu_seconds"]


def test_last_status_is_written_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run_info(tmp_path)
    status = StatusRecorder()
    status.open(run)
    reserve = tmp_path / ".status.reserve"
    assert reserve.stat().st_size == 65536
    write_all = files._write_all

    def write_unless_disk_is_full(file: IO[bytes], data: bytes) -> None:
        if reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(file, data)

    monkeypatch.setattr(files, "_write_all", write_unless_disk_is_full)
    status.close(RunOutcome("failed", 10, error="No space left on device"))
    found = load_status(tmp_path)
    assert (found["state"], found["error"]) == ("failed", "No space left on device")
    assert list(tmp_path.iterdir()) == [tmp_path / "status.json"]


def test_a_damaged_status_does_not_stop_a_resume(tmp_path: Path) -> None:
    run = make_run_info(tmp_path, completed_steps=10)
    (tmp_path / "status.json").write_text('{"state": "runn')
    StatusRecorder().open(run)
    assert load_status(tmp_path)["state"] == "running"
