"""Equality of killed, stopped and resumed runs with uninterrupted runs."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.record_writer import RecordWriter

import genexp
from genexp.recorders.tensorboard import get_scalar_tag
from genexp.run_dir import files
from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint
from tests.support.assertions import assert_same, assert_same_run
from tests.support.command import (
    format_run_dir_override,
    get_error_line,
    load_status,
    read_metrics_log,
    run_genexp,
    run_genexp_process,
    start_genexp,
    wait_for,
)
from tests.support.compose import TECHNIQUES, make_tiny_overrides
from tests.support.tensorboard import read_events

EPOCHS = 8


def run_arguments(name: str, run_dir: Path) -> list[str]:
    """Return a run that evaluates, renders previews and saves after each of a few short epochs."""
    intervals = ("trainer.evaluate_every=1", "trainer.preview_every=1", "trainer.checkpoint_every=1")
    return [*make_tiny_overrides(name), f"trainer.epochs={EPOCHS}", *intervals, format_run_dir_override(run_dir)]


# test_kills.py kills at the boundaries between file operations. A random time may also be within one.
QUICK_TECHNIQUES = ("vae",)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK_TECHNIQUES else pytest.param(name, marks=pytest.mark.slow) for name in TECHNIQUES],
)
def test_run_killed_at_a_random_time_resumes_exactly(name: str, tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "straight", tmp_path / "killed"
    assert run_genexp_process(*run_arguments(name, uninterrupted)) == 0
    rng = random.Random(name)
    with start_genexp(*run_arguments(name, killed)) as process:
        wait_for(lambda: list_checkpoints(killed) or not process.is_alive())
        time.sleep(rng.uniform(0.0, 0.6))
        process.kill()
        process.join()
    if load_status(killed)["state"] != "finished":
        assert run_genexp_process(f"resume={killed}") == 0
    assert_same_run(uninterrupted, killed)


def kill_while_writing(checkpoint_number: int) -> None:
    """Make this process kill itself while it writes its `checkpoint_number`-th checkpoint file."""
    remaining = iter(range(checkpoint_number - 1, -1, -1))
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        is_checkpoint = Path(f"/proc/self/fd/{descriptor}").readlink().parent.name == "checkpoints"
        if is_checkpoint and next(remaining) == 0:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real_fsync(descriptor)

    files.os.fsync = fsync  # type: ignore[attr-defined]


def test_run_killed_while_writing_a_checkpoint_resumes_exactly(tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "straight", tmp_path / "killed"
    assert run_genexp_process(*run_arguments("vae", uninterrupted)) == 0
    with start_genexp(*run_arguments("vae", killed), prepare=kill_while_writing, prepare_args=(11,)) as process:
        process.join()
    assert list((killed / "checkpoints").glob("*.tmp")), "it was not killed while writing"
    assert run_genexp_process(f"resume={killed}") == 0
    assert_same_run(uninterrupted, killed)
    assert not list((killed / "checkpoints").glob("*.tmp"))


def kill_within_event(number: int) -> None:
    """Make this process kill itself once half of its `number`-th TensorBoard event is in the file."""
    remaining = iter(range(number - 1, -1, -1))
    real_write = RecordWriter.write

    def write(record_writer: Any, event: bytes) -> None:
        if next(remaining) == 0:
            record_writer._writer.write(len(event).to_bytes(8, "little") + event[: len(event) // 2])
            record_writer._writer.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real_write(record_writer, event)

    RecordWriter.write = write


# 5 events precede the first step, whose checkpoint is that of step 0. An epoch has 5 steps and 8 events.
@pytest.mark.parametrize("number", [7, 12, 33])
def test_tensorboard_reads_each_step_once_after_a_kill_within_an_event(number: int, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with start_genexp(
        *run_arguments("vae", run_dir), prepare=kill_within_event, prepare_args=(number,)
    ) as process:
        process.join()
        assert process.exitcode == -signal.SIGKILL
    running_reader = read_events(run_dir)
    assert run_genexp_process(f"resume={run_dir}") == 0
    rows = read_metrics_log(run_dir)
    for events in (read_events(run_dir), running_reader.Reload()):
        for split, metric in (("train", "loss"), ("test", "psnr")):
            expected = {row["step"]: row[metric] for row in rows if row["split"] == split}
            found = events.Scalars(get_scalar_tag(metric, split))
            assert [event.step for event in found] == list(expected)
            assert [event.value for event in found] == pytest.approx(list(expected.values()))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_cleanly_and_the_run_resumes_exactly(signum: signal.Signals, tmp_path: Path) -> None:
    uninterrupted, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run_genexp_process(*run_arguments("vae", uninterrupted)) == 0
    with start_genexp(*run_arguments("vae", stopped)) as process:
        wait_for(lambda: list_checkpoints(stopped))
        assert process.pid is not None
        os.kill(process.pid, signum)
        process.join(60)
        assert process.exitcode == 128 + signum
    assert load_status(stopped)["state"] == "stopped"
    assert load_status(stopped)["step"] == read_metrics_log(stopped)[-1]["step"]
    assert run_genexp_process(f"resume={stopped}") == 0
    assert_same_run(uninterrupted, stopped)


def test_second_signal_stops_immediately(tmp_path: Path) -> None:
    endless_overrides = [
        *make_tiny_overrides("vae"),
        "trainer.epochs=1000000",
        "trainer.preview_every=0",
        format_run_dir_override(tmp_path / "run"),
    ]
    with start_genexp(*endless_overrides) as process:
        wait_for(lambda: list_checkpoints(tmp_path / "run"))
        assert process.pid is not None
        for _ in range(2):
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.001)
        process.join(20)
        assert process.exitcode == 143


def test_time_budget_stops_with_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    endless_overrides = (
        *make_tiny_overrides("vae"),
        "trainer.epochs=1000000",
        "trainer.preview_every=0",
        "trainer.time_budget=0.5",
    )
    result = run_genexp(*endless_overrides, format_run_dir_override(folder))
    assert result.exit_code == 0, result.stderr
    state = load_status(folder)
    assert state["state"] == "stopped"
    assert list_checkpoints(folder)[0].name == f"step-{state['step']:08d}.pt"
    assert f"resume={folder}" in result.stdout


def test_finished_run_can_be_extended(tmp_path: Path) -> None:
    constant = "optimizer.schedule=constant"  # a decay would depend on the length of the run
    uninterrupted, longer = tmp_path / "straight", tmp_path / "longer"
    assert (
        run_genexp(
            *make_tiny_overrides("vae"), constant, "trainer.epochs=4", format_run_dir_override(uninterrupted)
        ).exit_code
        == 0
    )
    assert (
        run_genexp(
            *make_tiny_overrides("vae"), constant, "trainer.epochs=2", format_run_dir_override(longer)
        ).exit_code
        == 0
    )
    assert run_genexp(f"resume={longer}", "trainer.epochs=4").exit_code == 0
    assert_same_run(uninterrupted, longer)


def test_run_without_optimizer_state_can_be_used_but_not_extended(tmp_path: Path) -> None:
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    run = (*make_tiny_overrides("vae"), "trainer.epochs=2", "trainer.final_checkpoint=weights")
    first = run_genexp(*run, format_run_dir_override(run_dir))
    assert first.exit_code == 0, first.stderr
    assert "resume" not in first.stdout
    (path,) = list_checkpoints(run_dir)
    content = load_checkpoint(path)
    assert content["optimizers"] is None
    before = {path: path.read_bytes() for path in run_dir.rglob("*.*") if path.is_file()}
    line = get_error_line(run_genexp(f"resume={run_dir}", "trainer.epochs=4"), "genexp")
    assert line == (
        f"genexp: resume={run_dir}: has no optimizer state, because it finished with "
        f"trainer.final_checkpoint=weights. Use trainer.init_from={run_dir} to start from its weights."
    )
    assert {path: path.read_bytes() for path in run_dir.rglob("*.*") if path.is_file()} == before
    # The files of a finished run can still be completed.
    (run_dir / "report.html").unlink()
    assert run_genexp(f"resume={run_dir}").exit_code == 0
    assert (run_dir / "report.html").is_file()
    # A run that was stopped resumes exactly, and then has the weights of a whole one.
    assert run_genexp(*run, "trainer.final_checkpoint=full", format_run_dir_override(whole)).exit_code == 0
    expected = load_checkpoint(list_checkpoints(whole)[0])
    assert path.stat().st_size < 0.6 * list_checkpoints(whole)[0].stat().st_size
    assert_same(content["technique"], expected["technique"])
    assert_same(dict(genexp.load_run(run_dir).technique.state_dict()), expected["technique"])
    new_run = (*make_tiny_overrides("vae"), f"trainer.init_from={run_dir}")
    assert run_genexp(*new_run, format_run_dir_override(tmp_path / "new")).exit_code == 0


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    uninterrupted, damaged = tmp_path / "straight", tmp_path / "damaged"
    run = (*make_tiny_overrides("vae"), "optimizer.schedule=constant", "trainer.keep_checkpoints=3")
    assert run_genexp(*run, "trainer.epochs=3", format_run_dir_override(uninterrupted)).exit_code == 0
    assert run_genexp(*run, "trainer.epochs=2", format_run_dir_override(damaged)).exit_code == 0
    newest = list_checkpoints(damaged)[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    result = run_genexp(f"resume={damaged}", "trainer.epochs=3")
    assert result.exit_code == 0, result.stderr
    assert "The previous checkpoint is used." in (damaged / "train.log").read_text()
    assert_same_run(uninterrupted, damaged)
