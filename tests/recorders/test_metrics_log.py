"""`metrics.jsonl` holds every number, and can be cut back and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genexp.errors import DataError
from genexp.recorders.metrics_log import MetricsRecorder
from genexp.recorders.step_rows import EpochMeans
from genexp.run_dir.metrics import read_metrics
from genexp.snapshot import Curve, Snapshot
from tests.support.snapshots import (
    clock,
    curves,
    cut_back,
    loss_at,
    record_blocks,
    recording,
    run_info,
    sizes,
    snapshot,
)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_and_every_evaluation_is_one_line(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    with recording(MetricsRecorder(), run) as log:
        log.record(snapshot(10, run, test_metrics={"psnr": 11.5}))
    *train, test = lines_of(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in train] == list(range(1, 11))
    assert list(train[0]) == ["step", "epoch", "split", "loss", "kl"]
    assert [np.float32(line["loss"]) for line in train] == [loss_at(step) for step in range(1, 11)]
    assert test == {"step": 10, "epoch": 1, "split": "test", "psnr": 11.5}


def test_the_epoch_is_that_of_the_step_and_not_of_the_block(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    with recording(MetricsRecorder(), run) as log:
        log.record(snapshot(20, run, block=20))
    assert [line["epoch"] for line in lines_of(tmp_path / "metrics.jsonl")] == [1] * 10 + [2] * 10


def test_a_resting_phase_leaves_its_metric_out_of_the_line(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    with recording(MetricsRecorder(), run) as log:
        sparse = Curve(np.array([2, 4]), np.array([0.5, 0.25], np.float32))
        log.record(Snapshot(clock(4, run), {"critic": curves(1, 4)["loss"], "generator": sparse}))
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [line.get("generator") for line in lines] == [None, 0.5, None, 0.25]
    assert all("critic" in line for line in lines)
    assert "generator" not in lines[0]


def test_values_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    with recording(MetricsRecorder(), run) as log:
        values = np.array([np.nan, np.inf, 1e-20], np.float32)
        log.record(
            Snapshot(clock(3, run), {"loss": Curve(np.arange(1, 4), values)}, test_metrics={"psnr": float("-inf")})
        )
    assert [line.get("loss") for line in lines_of(tmp_path / "metrics.jsonl")] == [None, None, 1e-20, None]
    assert np.isnan(read_metrics(tmp_path / "metrics.jsonl")["test"]["psnr"].values).all()


def test_cut_back_and_continued_equals_uninterrupted(tmp_path: Path) -> None:
    straight, broken = run_info(tmp_path / "straight"), run_info(tmp_path / "broken")
    with recording(MetricsRecorder(), straight) as log:
        record_blocks(log, straight, (0, 10, 20, 30, 40))

    with recording(MetricsRecorder(), broken) as killed:
        record_blocks(killed, broken, (0, 10, 20))
        noted = sizes(killed)
        record_blocks(killed, broken, (30,))
    cut_back(noted)
    with recording(MetricsRecorder(), run_info(tmp_path / "broken", completed_steps=20)) as resumed:
        record_blocks(resumed, broken, (30, 40))
    assert (tmp_path / "broken/metrics.jsonl").read_bytes() == (tmp_path / "straight/metrics.jsonl").read_bytes()


def test_a_finished_run_that_is_resumed_writes_nothing_twice(tmp_path: Path) -> None:
    run = run_info(tmp_path, completed_steps=40)
    with recording(MetricsRecorder(), run) as log:
        log.record(snapshot(40, run, train_curves={}, test_metrics={"psnr": 14.0}))
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_what_is_recorded_is_in_the_file_at_once(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    with recording(MetricsRecorder(), run) as log:
        log.record(snapshot(10, run))
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 10


def test_the_reader_gives_columns_and_leaves_out_a_half_written_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "epoch": 1, "split": "train", "loss": 2.0}\n'
        '{"step": 2, "epoch": 1, "split": "train", "loss": 1.0, "kl": 3}\n'
        '{"step": 2, "epoch": 1, "split": "test", "psnr": 9.5}\n'
        '{"step": 3, "epoch": 2, "split": "tr'
    )
    metrics = read_metrics(path)
    assert metrics["train"]["loss"].values.tolist() == [2.0, 1.0]
    assert metrics["train"]["kl"].steps.tolist() == [2]
    assert metrics["test"]["psnr"].epochs.tolist() == [1]


def test_the_reader_names_a_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "epoch": 1, "split": "train", "loss": 2.0}\noops\n')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)


def test_epoch_means_do_not_depend_on_the_blocks() -> None:
    whole, parts = EpochMeans(10), EpochMeans(10)
    together = whole.add(curves(1, 20))
    assert parts.add(curves(1, 7)) is None
    assert parts.add(curves(8, 13)) is not None
    apart = parts.add(curves(14, 20))
    assert together is not None
    assert apart is not None
    assert together[0] == apart[0] == 2
    assert apart[1] == pytest.approx(together[1])
    assert apart[1]["loss"] == pytest.approx(np.mean([loss_at(step) for step in range(11, 21)]))


def test_an_epoch_resumed_midway_counts_what_it_saw() -> None:
    means = EpochMeans(10)
    assert means.add(curves(21, 25)) is None
    assert means.compute_means()["loss"] == pytest.approx(np.mean([loss_at(step) for step in range(21, 26)]))


def test_epochs_of_one_step_end_with_every_step() -> None:
    ended = EpochMeans(1).add(curves(1, 5))
    assert ended is not None
    assert ended[0] == 5
    assert ended[1]["loss"] == pytest.approx(loss_at(5))
