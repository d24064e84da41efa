"""Recorder of `metrics.jsonl`: lines, flushing, truncation and resumption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from genexp.recorders.metrics_log import MetricsRecorder
from genexp.run_dir.checkpoint import truncate_logs
from genexp.run_dir.metrics import read_metrics
from genexp.snapshot import Curve, Snapshot
from tests.support.snapshots import (
    flush_and_measure_logs,
    make_clock,
    make_curves,
    make_run_info,
    make_snapshot,
    open_recorder,
    record_snapshots,
    synthetic_loss,
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_and_every_evaluation_is_one_line(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(MetricsRecorder(), run) as log:
        log.record(make_snapshot(10, run, test_metrics={"psnr": 11.5}))
    *train, test = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in train] == list(range(1, 11))
    assert list(train[0]) == ["step", "epoch", "split", "loss", "kl"]
    assert [np.float32(line["loss"]) for line in train] == [synthetic_loss(step) for step in range(1, 11)]
    assert test == {"step": 10, "epoch": 1, "split": "test", "psnr": 11.5}


def test_epoch_is_computed_per_step_not_per_block(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(MetricsRecorder(), run) as log:
        log.record(make_snapshot(20, run, block_steps=20))
    assert [line["epoch"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1] * 10 + [2] * 10


def test_inactive_phase_metric_is_omitted_from_the_line(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(MetricsRecorder(), run) as log:
        sparse = Curve(np.array([2, 4]), np.array([0.5, 0.25], np.float32))
        log.record(Snapshot(make_clock(4, run), {"critic": make_curves(1, 4)["loss"], "generator": sparse}))
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line.get("generator") for line in lines] == [None, 0.5, None, 0.25]
    assert all("critic" in line for line in lines)
    assert "generator" not in lines[0]


def test_nonfinite_values_are_written_as_null(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(MetricsRecorder(), run) as log:
        values = np.array([np.nan, np.inf, 1e-20], np.float32)
        log.record(
            Snapshot(
                make_clock(3, run), {"loss": Curve(np.arange(1, 4), values)}, test_metrics={"psnr": float("-inf")}
            )
        )
    assert [line.get("loss") for line in read_lines(tmp_path / "metrics.jsonl")] == [None, None, 1e-20, None]
    assert np.isnan(read_metrics(tmp_path)["test"]["psnr"].values).all()


def test_truncated_and_resumed_log_equals_uninterrupted_log(tmp_path: Path) -> None:
    uninterrupted, broken = make_run_info(tmp_path / "straight"), make_run_info(tmp_path / "broken")
    with open_recorder(MetricsRecorder(), uninterrupted) as log:
        record_snapshots(log, uninterrupted, (0, 10, 20, 30, 40))

    with open_recorder(MetricsRecorder(), broken) as killed:
        record_snapshots(killed, broken, (0, 10, 20))
        log_offsets = flush_and_measure_logs(killed, broken)
        record_snapshots(killed, broken, (30,))
    truncate_logs(broken.run_dir, log_offsets)
    with open_recorder(MetricsRecorder(), make_run_info(tmp_path / "broken", completed_steps=20)) as resumed:
        record_snapshots(resumed, broken, (30, 40))
    assert (tmp_path / "broken/metrics.jsonl").read_bytes() == (tmp_path / "straight/metrics.jsonl").read_bytes()


def test_a_finished_run_that_is_resumed_writes_nothing_twice(tmp_path: Path) -> None:
    run = make_run_info(tmp_path, completed_steps=40)
    with open_recorder(MetricsRecorder(), run) as log:
        log.record(make_snapshot(40, run, train_curves={}, test_metrics={"psnr": 14.0}))
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_recorded_lines_are_flushed_immediately(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(MetricsRecorder(), run) as log:
        log.record(make_snapshot(10, run))
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 10
