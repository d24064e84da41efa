"""A run that was killed or stopped and resumed equals the run that was not."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from genexp.run_dir import checkpoint
from genexp.run_dir.checkpoint import list_checkpoints
from tests.support.command import (
    assert_same_run,
    background,
    genexp,
    in_folder,
    metrics,
    run_to_end,
    status,
    wait_for,
)
from tests.support.compose import NAMES, tiny

EPOCHS = 8


def arguments(name: str, folder: Path) -> list[str]:
    """Return a run that looks, judges and saves after each of a few short epochs."""
    intervals = ("trainer.evaluate_every=1", "trainer.preview_every=1", "trainer.checkpoint_every=1")
    return [*tiny(name), f"trainer.epochs={EPOCHS}", *intervals, in_folder(folder)]


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_a_random_moment_and_resumed(name: str, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert run_to_end(*arguments(name, straight)) == 0
    chance = random.Random(name)
    with background(*arguments(name, killed)) as process:
        wait_for(lambda: list_checkpoints(killed) or not process.is_alive())
        time.sleep(chance.uniform(0.0, 0.6))
        process.kill()
        process.join()
    if status(killed)["state"] != "finished":
        assert run_to_end(f"resume={killed}") == 0
    assert_same_run(straight, killed)


def kill_while_writing(count: int) -> None:
    """Make this process kill itself in the middle of writing its `count`-th checkpoint file."""
    left = iter(range(count - 1, -1, -1))
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if next(left) == 0:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real_fsync(descriptor)

    checkpoint.os.fsync = fsync  # type: ignore[attr-defined]


def test_killed_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert run_to_end(*arguments("vae", straight)) == 0
    with background(*arguments("vae", killed), prepare=kill_while_writing, options=(11,)) as process:
        process.join()
    assert list((killed / "checkpoints").glob("*.tmp")), "it was not killed while writing"
    assert run_to_end(f"resume={killed}") == 0
    assert_same_run(straight, killed)
    assert not list((killed / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_the_run_can_go_on(number: signal.Signals, tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run_to_end(*arguments("vae", straight)) == 0
    with background(*arguments("vae", stopped)) as process:
        wait_for(lambda: list_checkpoints(stopped))
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == 128 + number
    assert status(stopped)["state"] == "stopped"
    assert status(stopped)["step"] == metrics(stopped)[-1]["step"]
    assert run_to_end(f"resume={stopped}") == 0
    assert_same_run(straight, stopped)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    endless = [*tiny("vae"), "trainer.epochs=1000000", "trainer.preview_every=0", in_folder(tmp_path / "run")]
    with background(*endless) as process:
        wait_for(lambda: list_checkpoints(tmp_path / "run"))
        assert process.pid is not None
        for _ in range(2):
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.001)
        process.join(20)
        assert process.exitcode == 143


def test_a_time_budget_stops_with_everything_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    endless = (*tiny("vae"), "trainer.epochs=1000000", "trainer.preview_every=0", "trainer.time_budget=0.5")
    ended = genexp(*endless, in_folder(folder))
    assert ended.code == 0, ended.err
    state = status(folder)
    assert state["state"] == "stopped"
    assert list_checkpoints(folder)[0].name == f"step-{state['step']:08d}.pt"
    assert f"resume={folder}" in ended.out


def test_more_epochs_go_on_in_the_same_folder(tmp_path: Path) -> None:
    constant = "optimizer.schedule=constant"  # a decay would depend on where the run ends
    straight, longer = tmp_path / "straight", tmp_path / "longer"
    assert genexp(*tiny("vae"), constant, "trainer.epochs=4", in_folder(straight)).code == 0
    assert genexp(*tiny("vae"), constant, "trainer.epochs=2", in_folder(longer)).code == 0
    assert genexp(f"resume={longer}", "trainer.epochs=4").code == 0
    assert_same_run(straight, longer)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    straight, damaged = tmp_path / "straight", tmp_path / "damaged"
    run = (*tiny("vae"), "optimizer.schedule=constant")
    assert genexp(*run, "trainer.epochs=3", in_folder(straight)).code == 0
    assert genexp(*run, "trainer.epochs=2", in_folder(damaged)).code == 0
    newest = list_checkpoints(damaged)[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    ended = genexp(f"resume={damaged}", "trainer.epochs=3")
    assert ended.code == 0, ended.err
    assert "falling back" in (damaged / "train.log").read_text()
    assert_same_run(straight, damaged)
