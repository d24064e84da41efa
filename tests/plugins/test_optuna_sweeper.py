"""Optuna chooses the jobs of a sweep, from a file that a search goes on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from genexp.sweep.optuna_study import OptunaStudy, build_distribution
from tests.support.command import load_status, read_metrics_log, run_genexp, start_genexp, wait_for
from tests.support.sweeps import SHORT_RUN, load_job_states, sweep_arguments

SEARCH_SPACE = ("optimizer.lr=tag(log, interval(1e-5,1e-1))", "model.activation=choice(relu,tanh)")
OPTUNA_SWEEP = (
    *SEARCH_SPACE,
    "hydra/sweeper=optuna",
    "trainer.epochs=1",
    "hydra.sweeper.sampler.n_startup_trials=2",
)


def load_job_overrides(sweep_dir: Path) -> list[list[str]]:
    """Return what tells each job from the others."""
    return [job["overrides"] for job in json.loads((sweep_dir / "sweep.json").read_text())["jobs"]]


@pytest.mark.parametrize(
    ("override_text", "expected"),
    [
        ("a=interval(0,2)", FloatDistribution(0.0, 2.0)),
        ("a=tag(log, interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("a=int(interval(1,8))", IntDistribution(1, 8)),
        ("a=tag(int, log, interval(1,64))", IntDistribution(1, 64, log=True)),
        ("a=range(1,10,3)", IntDistribution(1, 7, step=3)),  # as without Optuna: 10 is not among them
        ("a=range(0,1,0.5)", CategoricalDistribution(["0.0", "0.5"])),
        ("a=choice(x,y)", CategoricalDistribution(["x", "y"])),
        ("a=1,2,null", CategoricalDistribution(["1", "2", "null"])),
    ],
)
def test_sweep_overrides_become_optuna_distributions(override_text: str, expected: object) -> None:
    (override,) = OverridesParser.create().parse_overrides([override_text])
    assert build_distribution(override) == expected


def run_study(path: Path, batch_plans: tuple[tuple[int, int], ...]) -> list[float]:
    """Return what is proposed in batches of a size up to a number, each in a search that is opened anew."""
    objective = {"objective": "y", "direction": "min"}
    for size, num_trials in batch_plans:
        sampler = {"name": "tpe", "seed": 0, "n_startup_trials": 3, "constant_liar": True}
        study = OptunaStudy(path, {"x": FloatDistribution(-1, 1)}, sampler, objective)
        while batch := study.ask_batch(size, num_trials):
            for trial in batch:
                study.tell(trial.number, trial.params["x"] ** 2)
    return [trial.params["x"] for trial in study.trials]


def test_reopened_study_proposes_the_same_trials(tmp_path: Path) -> None:
    whole = run_study(tmp_path / "whole", ((2, 10),))
    assert len(set(whole)) == 10
    assert run_study(tmp_path / "parts", ((2, 4), (2, 6), (2, 10))) == whole
    half = (tmp_path / "whole").read_bytes()
    (tmp_path / "torn").write_bytes(half[: len(half) * 2 // 3])  # killed while it wrote
    assert run_study(tmp_path / "torn", ((2, 10),)) == whole


def test_killed_search_resumes_from_its_file(tmp_path: Path) -> None:
    assert (
        run_genexp(*sweep_arguments(tmp_path / "whole", *OPTUNA_SWEEP, "hydra.sweeper.n_trials=4")).exit_code == 0
    )
    assert set(load_job_states(tmp_path / "whole").values()) == {"finished"}
    with start_genexp(*sweep_arguments(tmp_path / "killed", *OPTUNA_SWEEP, "hydra.sweeper.n_trials=3")) as process:
        wait_for((tmp_path / "killed" / "1" / ".hydra").exists, seconds=120, process=process)
    result = run_genexp(
        "-m", *SHORT_RUN, *OPTUNA_SWEEP, "hydra.sweeper.n_trials=4", f"sweep.resume={tmp_path / 'killed'}"
    )
    assert result.exit_code == 0
    assert "best mse" in result.stdout
    assert load_job_overrides(tmp_path / "killed") == load_job_overrides(tmp_path / "whole")
    assert all(
        read_metrics_log(tmp_path / "killed" / n) == read_metrics_log(tmp_path / "whole" / n) for n in "0123"
    )


def test_a_trial_that_fails_does_not_end_the_search(tmp_path: Path) -> None:
    overrides = ("optimizer.lr=choice(1e9)", "seed=range(0,9)", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")
    assert run_genexp(*sweep_arguments(tmp_path, *overrides)).exit_code == 1
    assert set(load_job_states(tmp_path).values()) == {"failed"}
    assert "optimizer.lr" in load_status(tmp_path / "0")["error"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("seed=0", "hydra/sweeper=optuna has nothing to search"),
        (
            "seed=0,1 hydra.sweeper.direction=maximize",
            "contradicts trainer.direction=min of trainer.objective=mse",
        ),
        ("seed=0,1 trainer.objective=test/psnr", "trainer.direction=min contradicts trainer.objective=test/psnr"),
        ("optimizer.lrr=interval(0,1)", "did you mean optimizer.lr?"),
        ("seed=0,1 hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0: use a whole number of at least 1"),
        ("seed=0,1 hydra/sweeper/sampler=tree", "hydra/sweeper/sampler=tree does not exist"),
    ],
)
def test_invalid_search_settings_are_rejected(overrides: str, message: str, tmp_path: Path) -> None:
    result = run_genexp(*sweep_arguments(tmp_path / "sweep", "hydra/sweeper=optuna", *overrides.split()))
    assert (result.exit_code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = result.stderr.splitlines()
    assert message in line


def test_search_with_another_space_is_rejected(tmp_path: Path) -> None:
    assert run_genexp(*sweep_arguments(tmp_path, *OPTUNA_SWEEP, "hydra.sweeper.n_trials=1")).exit_code == 0
    result = run_genexp("-m", *SHORT_RUN, *OPTUNA_SWEEP[1:], f"sweep.resume={tmp_path}")
    assert (
        "holds another search: its space was model.activation=choice(relu,tanh) optimizer.lr=tag(log"
        in result.stderr
    )
    assert len(load_job_states(tmp_path)) == 1
