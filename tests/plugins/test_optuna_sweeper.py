"""Optuna chooses the jobs of a sweep, from a file that a search goes on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from genexp.sweep.optuna_study import OptunaStudy, build_distribution
from tests.support.command import background, genexp, metrics, status
from tests.support.sweeps import SHORT, states, sweep

SPACE = ("optimizer.lr=tag(log, interval(1e-5,1e-1))", "model.activation=choice(relu,tanh)")
OPTUNA = (*SPACE, "hydra/sweeper=optuna", "trainer.epochs=1", "hydra.sweeper.sampler.n_startup_trials=2")


def words_of(folder: Path) -> list[list[str]]:
    """Return what tells each job from the others."""
    return [job["overrides"] for job in json.loads((folder / "sweep.json").read_text())["jobs"]]


@pytest.mark.parametrize(
    ("word", "expected"),
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
def test_the_command_line_s_values_are_distributions(word: str, expected: object) -> None:
    (override,) = OverridesParser.create().parse_overrides([word])
    assert build_distribution(override) == expected


def searched(path: Path, batches: tuple[tuple[int, int], ...]) -> list[float]:
    """Return what is proposed in batches of a size up to a number, each in a search that is opened anew."""
    facts = {"objective": "y", "direction": "min"}
    for size, most in batches:
        sampler = {"name": "tpe", "seed": 0, "n_startup_trials": 3, "constant_liar": True}
        search = OptunaStudy(path, {"x": FloatDistribution(-1, 1)}, sampler, facts)
        while batch := search.ask_batch(size, most):
            for trial in batch:
                search.tell(trial.number, trial.params["x"] ** 2)
    return [trial.params["x"] for trial in search.trials]


def test_a_search_in_many_sittings_is_the_search_in_one(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", ((2, 10),))
    assert len(set(whole)) == 10
    assert searched(tmp_path / "parts", ((2, 4), (2, 6), (2, 10))) == whole
    half = (tmp_path / "whole").read_bytes()
    (tmp_path / "torn").write_bytes(half[: len(half) * 2 // 3])  # killed while it wrote
    assert searched(tmp_path / "torn", ((2, 10),)) == whole


def test_a_search_goes_on_from_its_file(tmp_path: Path) -> None:
    assert genexp(*sweep(tmp_path / "whole", *OPTUNA, "hydra.sweeper.n_trials=4")).code == 0
    assert set(states(tmp_path / "whole").values()) == {"finished"}
    with background(*sweep(tmp_path / "killed", *OPTUNA, "hydra.sweeper.n_trials=3")) as process:
        while not (tmp_path / "killed" / "1" / ".hydra").exists():
            assert process.is_alive()
            process.join(0.02)
    ended = genexp("-m", *SHORT, *OPTUNA, "hydra.sweeper.n_trials=4", f"sweep.resume={tmp_path / 'killed'}")
    assert ended.code == 0
    assert "best mse" in ended.out
    assert words_of(tmp_path / "killed") == words_of(tmp_path / "whole")
    assert all(metrics(tmp_path / "killed" / n) == metrics(tmp_path / "whole" / n) for n in "0123")


def test_a_trial_that_fails_does_not_end_the_search(tmp_path: Path) -> None:
    words = ("optimizer.lr=choice(1e9)", "seed=range(0,9)", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")
    assert genexp(*sweep(tmp_path, *words)).code == 1
    assert set(states(tmp_path).values()) == {"failed"}
    assert "optimizer.lr" in status(tmp_path / "0")["error"]


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_a_search_that_cannot_be_is_refused(words: str, said: str, tmp_path: Path) -> None:
    ended = genexp(*sweep(tmp_path / "sweep", "hydra/sweeper=optuna", *words.split()))
    assert (ended.code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = ended.err.splitlines()
    assert said in line


def test_another_search_does_not_mix_with_the_first(tmp_path: Path) -> None:
    assert genexp(*sweep(tmp_path, *OPTUNA, "hydra.sweeper.n_trials=1")).code == 0
    ended = genexp("-m", *SHORT, *OPTUNA[1:], f"sweep.resume={tmp_path}")
    assert (
        "holds another search: its space was model.activation=choice(relu,tanh) optimizer.lr=tag(log" in ended.err
    )
    assert len(states(tmp_path)) == 1
