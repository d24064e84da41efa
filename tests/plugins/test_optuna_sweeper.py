"""Searches with Optuna: resumption, failed trials and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import load_status, read_metrics_log, run_genexp, start_genexp, wait_for
from tests.support.sweeps import SHORT_RUN_OVERRIDES, load_job_states, make_sweep_arguments

SEARCH_SPACE = ("optimizer.lr=tag(log, interval(1e-5,1e-1))", "model.activation=choice(relu,tanh)")
OPTUNA_SWEEP = (
    *SEARCH_SPACE,
    "hydra/sweeper=optuna",
    "trainer.epochs=1",
    "hydra.sweeper.sampler.n_startup_trials=2",
)


def load_job_overrides(sweep_dir: Path) -> list[list[str]]:
    """Return the overrides of each job."""
    return [job["overrides"] for job in json.loads((sweep_dir / "sweep.json").read_text())["jobs"]]


def test_killed_search_resumes_from_its_file(tmp_path: Path) -> None:
    assert (
        run_genexp(*make_sweep_arguments(tmp_path / "whole", *OPTUNA_SWEEP, "hydra.sweeper.n_trials=4")).exit_code
        == 0
    )
    assert set(load_job_states(tmp_path / "whole").values()) == {"finished"}
    with start_genexp(
        *make_sweep_arguments(tmp_path / "killed", *OPTUNA_SWEEP, "hydra.sweeper.n_trials=3")
    ) as process:
        wait_for((tmp_path / "killed" / "1" / ".hydra").exists, seconds=120, process=process)
    result = run_genexp(
        "-m",
        *SHORT_RUN_OVERRIDES,
        *OPTUNA_SWEEP,
        "hydra.sweeper.n_trials=4",
        f"sweep.resume={tmp_path / 'killed'}",
    )
    assert result.exit_code == 0
    assert "best mse" in result.stdout
    assert load_job_overrides(tmp_path / "killed") == load_job_overrides(tmp_path / "whole")
    assert all(
        read_metrics_log(tmp_path / "killed" / n) == read_metrics_log(tmp_path / "whole" / n) for n in "0123"
    )


def test_a_trial_that_fails_does_not_end_the_search(tmp_path: Path) -> None:
    overrides = (
        "optimizer.lr=choice(1e30)",
        "seed=range(0,9)",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=2",
    )
    assert run_genexp(*make_sweep_arguments(tmp_path, *overrides)).exit_code == 1
    assert set(load_job_states(tmp_path).values()) == {"failed"}
    assert "optimizer.lr" in load_status(tmp_path / "0")["error"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("seed=0", "hydra/sweeper=optuna: no search space"),
        (
            "seed=0,1 hydra.sweeper.direction=maximize",
            "must agree with trainer.direction=min. Remove it.",
        ),
        (
            "seed=0,1 trainer.objective=test/psnr",
            "trainer.direction=min: higher values of trainer.objective=psnr are better",
        ),
        ("optimizer.lrr=interval(0,1)", "Did you mean optimizer.lr?"),
        ("seed=0,1 hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0: must be an integer of at least 1"),
        ("seed=0,1 hydra/sweeper/sampler=tree", "hydra/sweeper/sampler=tree: unknown name"),
    ],
)
def test_invalid_search_settings_are_rejected(overrides: str, message: str, tmp_path: Path) -> None:
    result = run_genexp(*make_sweep_arguments(tmp_path / "sweep", "hydra/sweeper=optuna", *overrides.split()))
    assert (result.exit_code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = result.stderr.splitlines()
    assert message in line


def test_search_with_another_space_is_rejected(tmp_path: Path) -> None:
    assert run_genexp(*make_sweep_arguments(tmp_path, *OPTUNA_SWEEP, "hydra.sweeper.n_trials=1")).exit_code == 0
    result = run_genexp("-m", *SHORT_RUN_OVERRIDES, *OPTUNA_SWEEP[1:], f"sweep.resume={tmp_path}")
    assert (
        "contains another search (space was model.activation=choice(relu,tanh) optimizer.lr=tag(log"
        in result.stderr
    )
    assert len(load_job_states(tmp_path)) == 1
