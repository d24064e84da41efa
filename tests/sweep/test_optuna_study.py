"""Optuna studies: distributions from overrides, and reopening."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from genexp.sweep.optuna_study import OptunaStudy, build_distribution


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
    """Return the proposals of a study that is reopened for each (batch size, number of trials)."""
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
    (tmp_path / "torn").write_bytes(half[: len(half) * 2 // 3])  # as if killed while writing
    assert run_study(tmp_path / "torn", ((2, 10),)) == whole
