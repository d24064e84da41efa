"""Sweeps executed as one computation (`hydra/launcher=vectorized`)."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from genexp.run_dir.checkpoint import list_checkpoints
from genexp.run_dir.files import lock_run_dir
from genexp.run_dir.status import read_job_status
from tests.support.assertions import assert_close_to_scale
from tests.support.command import (
    list_files,
    load_newest_state,
    load_status,
    read_metrics_log,
    run_genexp,
    start_genexp,
    wait_for,
)
from tests.support.compose import make_tiny_overrides
from tests.support.sweeps import load_job_states

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
SHORT_RUN = (*make_tiny_overrides("stacked_autoencoder"), "trainer.epochs=3")


def vectorized_sweep_arguments(
    sweep_dir: Path, *overrides: str, run_overrides: tuple[str, ...] = SHORT_RUN
) -> list[str]:
    """Return the arguments of a vectorized sweep."""
    launcher_overrides = ("hydra/launcher=vectorized", "hydra.launcher.measure=false")
    return ["-m", *run_overrides, *launcher_overrides, *overrides, f"hydra.sweep.dir={sweep_dir}"]


def assert_same_curves(left: Path, right: Path) -> None:
    """Assert that two runs have the same metrics at the same steps, up to rounding."""
    for one, other in zip(read_metrics_log(left), read_metrics_log(right), strict=True):
        assert one.keys() == other.keys()
        assert [one[key] for key in one if key != "split"] == pytest.approx(
            [other[key] for key in other if key != "split"], rel=1e-3
        )


def test_job_in_use_by_another_process_runs_after_the_others(tmp_path: Path) -> None:
    sweep_dir = tmp_path / "sweep"
    arguments = vectorized_sweep_arguments(sweep_dir, "seed=1,2,3")
    assert run_genexp(*arguments).exit_code == 0
    for name in ("0", "1"):  # these jobs run again when the sweep is resumed
        shutil.rmtree(sweep_dir / name)
    (sweep_dir / "1").mkdir()

    def hold_lock_until_another_job_is_finished() -> None:
        with lock_run_dir(sweep_dir / "1"):
            is_locked.set()
            wait_for(lambda: read_job_status(sweep_dir / "0").state == "finished", seconds=200)

    is_locked = threading.Event()
    holder = threading.Thread(target=hold_lock_until_another_job_is_finished)
    holder.start()
    is_locked.wait()
    result = run_genexp(*arguments, f"sweep.resume={sweep_dir}")
    holder.join()
    assert result.exit_code == 0, result.stderr
    assert "job #1 run later: another process has locked the run directory" in result.stdout
    assert load_job_states(sweep_dir) == {"0": "finished", "1": "finished", "2": "finished"}


def test_vectorized_job_writes_the_files_of_a_single_run_and_resumes(tmp_path: Path) -> None:
    result = run_genexp(*vectorized_sweep_arguments(tmp_path / "sweep", "seed=1,2", "optimizer.lr=1e-3,1e-2"))
    assert result.exit_code == 0, result.stderr
    assert "jobs #0 to #3 run as an ensemble" in result.stdout
    assert (
        run_genexp(*SHORT_RUN, "seed=2", "optimizer.lr=1e-2", f"hydra.run.dir={tmp_path / 'run'}").exit_code == 0
    )
    job, run = tmp_path / "sweep" / "3", tmp_path / "run"
    assert list_files(job) == list_files(run)
    assert_same_curves(job, run)
    assert (job / "config.yaml").read_text() == (run / "config.yaml").read_text()
    assert_close_to_scale(load_newest_state(job), load_newest_state(run), 1e-2)
    newest, uninterrupted = (list_checkpoints(folder)[0].stat().st_size for folder in (job, run))
    assert newest == pytest.approx(uninterrupted, rel=0.01)
    assert "epoch 3/3" in (job / "train.log").read_text()
    assert (job / "train.log").read_text().count("epoch 3/3") == 1
    for folder in (job, run):
        assert run_genexp(f"resume={folder}", "trainer.epochs=4").exit_code == 0
    assert_same_curves(job, run)


def test_diverging_member_does_not_affect_the_others(tmp_path: Path) -> None:
    result = run_genexp(*vectorized_sweep_arguments(tmp_path / "sweep", "optimizer.lr=1e-3,1e30,1e-2"))
    assert result.exit_code == 1
    assert "1 of 3 jobs failed. The first is #1" in result.stderr
    states = {number: load_status(tmp_path / "sweep" / str(number)) for number in range(3)}
    assert [states[number]["state"] for number in range(3)] == ["finished", "failed", "finished"]
    assert "Use a smaller optimizer.lr" in states[1]["error"]
    assert run_genexp(*SHORT_RUN, "optimizer.lr=1e-2", f"hydra.run.dir={tmp_path / 'run'}").exit_code == 0
    assert_same_curves(tmp_path / "sweep" / "2", tmp_path / "run")


def test_jobs_at_different_steps_can_be_resumed(tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "straight", tmp_path / "killed"
    interval_overrides = ("trainer.keep_checkpoints=9", "seed=range(3)", "trainer.preview_every=0")
    assert run_genexp(*vectorized_sweep_arguments(uninterrupted, *interval_overrides)).exit_code == 0
    shutil.copytree(uninterrupted, killed)
    for number, kept in ((0, 1), (1, 2), (2, 2)):  # as if killed after that many checkpoints
        for file in list_checkpoints(killed / str(number))[:-kept]:
            file.unlink()
        (killed / str(number) / "status.json").unlink()
    overrides = vectorized_sweep_arguments(killed, *interval_overrides)[:-1]
    result = run_genexp(*overrides, f"sweep.resume={killed}")
    assert result.exit_code == 0, result.stderr
    assert "jobs #1, #2 run as an ensemble" in result.stdout
    for number in range(3):
        assert_same_curves(uninterrupted / str(number), killed / str(number))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=lbfgs", "seed=0,1"], "jobs #0, #1 run sequentially: a step of optimizer=lbfgs"),
        (["model.widths=[8,4],[8,3]"], "jobs #0, #1 run sequentially: they differ in model.widths"),
        (["model=deep_kmeans", "model.pretrain=0.2,0.8"], "control flow depends on model.pretrain"),
    ],
)
def test_incompatible_jobs_run_sequentially_with_a_message(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    short = (
        *make_tiny_overrides("deep_kmeans" if "model=deep_kmeans" in overrides else "stacked_autoencoder"),
        "trainer.max_steps=2",
    )
    overrides = [word for word in overrides if word != "model=deep_kmeans"]
    result = run_genexp(*vectorized_sweep_arguments(tmp_path, *overrides, run_overrides=short))
    assert result.exit_code == 0, result.stderr
    assert message in result.stdout
    assert all(load_status(tmp_path / number)["state"] == "finished" for number in "01")


def test_measured_step_times_are_printed(tmp_path: Path) -> None:
    overrides = [
        word for word in vectorized_sweep_arguments(tmp_path, "seed=0,1") if "launcher.measure" not in word
    ]
    result = run_genexp(*overrides)
    assert result.exit_code == 0, result.stderr
    assert "ms per step of all jobs, sequentially" in result.stdout


def test_signal_stops_all_members_and_they_can_be_resumed(tmp_path: Path) -> None:
    endless_overrides = (
        *make_tiny_overrides("stacked_autoencoder"),
        "trainer.epochs=1000000",
        "trainer.preview_every=0",
    )
    overrides = vectorized_sweep_arguments(
        tmp_path, "seed=0,1", "trainer.evaluate_every=0", run_overrides=endless_overrides
    )
    with start_genexp(*overrides) as process:
        logs = [tmp_path / number / "metrics.jsonl" for number in "01"]
        # Not parsed: the last line of a file that is being written may not be whole yet.
        wait_for(lambda: all(log.is_file() and log.stat().st_size for log in logs), seconds=120)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 130
    steps = [load_status(tmp_path / number)["step"] for number in "01"]
    assert [load_status(tmp_path / number)["state"] for number in "01"] == ["stopped", "stopped"]
    assert steps[0] == steps[1] == load_newest_state(tmp_path / "0")["step"]
    shutil.copytree(tmp_path / "1", tmp_path / "alone")
    result = run_genexp(f"resume={tmp_path / 'alone'}", f"trainer.max_steps={steps[0] + 3}")
    assert result.exit_code == 0, result.stderr
