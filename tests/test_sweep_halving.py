"""Successive halving: the weaker configurations stop at rungs, the others end as if none had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import background, genexp, metrics, status
from test_sweep import SHORT, states, sweep

RATES = "optimizer.lr=1e-6,1e-4,1e-3,1e-2"
HALVING = ("seed=0,1", RATES, "trainer.epochs=5", "sweep.halving.factor=2")


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep with four settings of which one comes to its end, with two seeds each."""
    folder = tmp_path_factory.mktemp("halved")
    ended = genexp(*sweep(folder, *HALVING))
    assert ended.code == 0
    assert "epoch 1: the best 2 of 4 configurations go on" in ended.out
    assert "epoch 2: the best 1 of 2 configurations go on" in ended.out
    assert "to go on" not in ended.out
    return folder


def epochs(folder: Path) -> dict[str, int]:
    return {number: status(folder / number)["epoch"] for number in states(folder)}


def test_seeds_of_one_configuration_go_together(halved: Path) -> None:
    words = {job["number"]: job["words"] for job in json.loads((halved / "sweep.json").read_text())["jobs"]}
    reached: dict[str, list[int]] = {}
    for number, epoch in epochs(halved).items():
        reached.setdefault(words[int(number)][1], []).append(epoch)
    assert sorted(reached.values()) == [[1, 1], [1, 1], [2, 2], [5, 5]]
    assert reached["optimizer.lr=1e-06"] == [1, 1]
    assert set(states(halved).values()) == {"finished", "stopped"}


def test_a_survivor_is_the_run_that_was_never_halted(halved: Path, tmp_path: Path) -> None:
    (number,) = [name for name, epoch in epochs(halved).items() if epoch == 5][:1]
    job = json.loads((halved / "sweep.json").read_text())["jobs"][int(number)]
    assert genexp(*SHORT, *job["words"], "trainer.epochs=5", f"hydra.run.dir={tmp_path}").code == 0
    assert metrics(halved / number) == metrics(tmp_path)


@pytest.mark.parametrize(("job", "epoch"), [("3", 1), ("6", 2)])
def test_killed_and_gone_on_with_it_is_the_same(job: str, epoch: int, halved: Path, tmp_path: Path) -> None:
    with background(*sweep(tmp_path, *HALVING)) as process:
        while not (tmp_path / job / "status.json").exists() or status(tmp_path / job)["epoch"] < epoch:
            assert process.is_alive()
            process.join(0.02)
    ended = genexp("-m", *SHORT, *HALVING, f"sweep.resume={tmp_path}")
    assert ended.code == 0
    assert (states(tmp_path), epochs(tmp_path)) == (states(halved), epochs(halved))
    for number in states(halved):
        assert metrics(tmp_path / number) == metrics(halved / number)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sweep.halving.factor=1", "sweep.halving.factor=1: use at least 2, or null"),
        ("sweep.halving.factor=half", "sweep.halving.factor=half: give a whole number or null"),
        ("sweep.halving.factor=2 trainer.evaluate_every=2", "no multiple of trainer.evaluate_every=2"),
        ("sweep.halving.factor=2 trainer.objective=mse,psnr", "not by mse (min) and psnr"),
        ("sweep.halving.factor=2 hydra/sweeper=optuna", "a search chooses one after the other"),
    ],
)
def test_what_cannot_be_halved_is_refused(words: str, said: str, tmp_path: Path) -> None:
    ended = genexp(*sweep(tmp_path / "sweep", "seed=0,1", RATES, "trainer.epochs=5", *words.split()))
    assert (ended.code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = ended.err.splitlines()
    assert said in line
