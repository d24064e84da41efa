"""Equality of sweeps of which a process was killed at a boundary of a file operation with uninterrupted sweeps."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from genexp.cli import compare
from genexp.run_dir.paths import MANIFEST_FILE
from tests.support.command import run_main
from tests.support.compose import make_tiny_overrides
from tests.support.kills import KILLED_EXIT_CODE, count_boundaries, run_with_test_clock
from tests.support.sweeps import load_job_states

RUN_OVERRIDES = (
    *make_tiny_overrides("stacked_autoencoder"),
    "model.widths=[16,4]",
    "trainer.epochs=2",
    "trainer.preview_every=0",
    *(f"recorders.{name}=false" for name in ("figures", "previews", "tensorboard")),  # tests/runs kills those
)
OPTUNA_OVERRIDES = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.n_startup_trials=2")
SWEEPS = {
    "basic": ("optimizer.lr=1e-3,1e-2",),
    "joblib": ("optimizer.lr=1e-3,1e-2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "vectorized": ("optimizer.lr=1e-3,1e-2", "hydra/launcher=vectorized", "hydra.launcher.measure=false"),
    "optuna": (*OPTUNA_OVERRIDES, "optimizer.lr=tag(log,interval(1e-4,1e-1))"),
}
QUICK_SWEEPS = ("basic", "vectorized")  # the others import their libraries in new processes
TIME_COLUMNS = ("seconds", "started", "updated", "time")
MAX_RESUMPTIONS = 3  # after the kill of the launcher, its workers end within a second, in which a job is in use


def make_arguments(kind: str, sweep_dir: Path) -> list[str]:
    return ["-m", *RUN_OVERRIDES, *SWEEPS[kind], f"hydra.sweep.dir={sweep_dir}"]


def read_table(sweep_dir: Path) -> Any:
    """Return the comparison of the runs of a sweep, the best first, without times and folders."""
    result = run_main("genexp-compare", compare.main, str(sweep_dir), "--json")
    assert result.exit_code == 0, result.stderr
    return _remove_times(json.loads(result.stdout.replace(str(sweep_dir), "SWEEP")))


def _remove_times(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _remove_times(value) for key, value in node.items() if key not in TIME_COLUMNS}
    return [_remove_times(item) for item in node] if isinstance(node, list) else node


def _round_numbers(node: Any) -> Any:
    """Return nested values with numbers of four significant digits."""
    if isinstance(node, dict):
        return {key: _round_numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_round_numbers(item) for item in node]
    return f"{node:.4g}" if isinstance(node, float) else node


def kill_and_finish_sweep(kind: str, sweep_dir: Path, boundary: int) -> Any:
    """Run a sweep of which each process is killed at a boundary, resume it until it has finished.

    Return its table.
    """
    arguments = make_arguments(kind, sweep_dir)
    exit_code = run_with_test_clock(*arguments, kill_at=boundary)
    # The launcher of joblib outlives its workers, unless the boundary is one of its own before they start. It runs
    # the interrupted jobs again, each in a new process, which is not killed if fewer boundaries are left.
    assert exit_code in ((0, 1, KILLED_EXIT_CODE) if kind == "joblib" else (KILLED_EXIT_CODE,))
    if exit_code == 0:
        logs = [path.read_text() for path in sweep_dir.glob("*/train.log")]
        assert any(log.count("→") > 1 for log in logs), f"no job was started again after boundary {boundary}"
    for _ in range(MAX_RESUMPTIONS):
        has_manifest = (sweep_dir / MANIFEST_FILE).exists()
        resume = (*arguments[:-1], f"sweep.resume={sweep_dir}") if has_manifest else arguments
        if run_with_test_clock(*resume) == 0:
            break
    assert set(load_job_states(sweep_dir).values()) == {"finished"}, f"boundary {boundary}"
    return read_table(sweep_dir)


def assert_equal_after_kills(kind: str, directory: Path, boundaries: int | None) -> None:
    """Kill a sweep at a number of random boundaries, or at each. Fail if a resumed one has another table."""
    whole, killed = directory / "whole", directory / "killed"
    count = count_boundaries(*make_arguments(kind, whole), counter=directory / "counter")
    if kind == "joblib":  # each worker counts its own boundaries, at least those of one of the two jobs
        basic = make_arguments("basic", directory / "basic")
        count = (count_boundaries(*basic, counter=directory / "counter of basic") - count) // 2
    expected = read_table(whole)
    numbers = range(1, count + 1)
    for boundary in numbers if boundaries is None else random.Random(kind).sample(numbers, boundaries):
        table = kill_and_finish_sweep(kind, killed, boundary)
        if kind == "vectorized":  # jobs that were killed at different steps go on in stacks of other sizes
            table, expected = _round_numbers(table), _round_numbers(expected)
        assert table == expected, f"boundary {boundary}"
        shutil.rmtree(killed)


@pytest.mark.parametrize("kind", QUICK_SWEEPS)
def test_sweep_killed_at_a_random_boundary_has_the_table_of_an_uninterrupted_one(
    kind: str, tmp_path: Path
) -> None:
    assert_equal_after_kills(kind, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", SWEEPS)
def test_sweep_killed_at_every_boundary_has_the_table_of_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    assert_equal_after_kills(kind, tmp_path, None)
