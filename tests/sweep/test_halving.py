"""Successive halving: the weaker configurations stop at rungs, the others end as if none had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from genexp.sweep.halving import HalvingConfig, SuccessiveHalving
from genexp.sweep.job import Job
from tests.support.command import background, genexp, metrics, status
from tests.support.sweeps import SHORT, states, sweep

RATES = "optimizer.lr=1e-6,1e-4,1e-2"
HALVING = ("seed=0,1", RATES, "trainer.epochs=3", "sweep.halving.factor=3")


def jobs_with(folder: Path, values: dict[tuple[float, int], list[float | None]], **trainer: Any) -> list[Job]:
    """Return a job for each (learning rate, seed), whose log has a value of its objective for each epoch."""
    jobs = []
    for number, ((lr, seed), by_epoch) in enumerate(values.items()):
        settings = {"epochs": 20, "evaluate_every": 1, "objective": "test/psnr", "direction": "max", **trainer}
        config = OmegaConf.create({"optimizer": {"lr": lr}, "seed": seed, "trainer": settings})
        rows = [{"split": "test", "epoch": epoch, "psnr": value} for epoch, value in enumerate(by_epoch, 1)]
        (folder / str(number)).mkdir()
        (folder / str(number) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        jobs.append(Job(number, folder / str(number), config, hydra_context=None))  # type: ignore[arg-type]
    return jobs


def test_each_rung_is_factor_times_as_far_until_one_configuration_is_left(tmp_path: Path) -> None:
    jobs = jobs_with(tmp_path, {(0.1 * n, seed): [] for n in range(9) for seed in (0, 1)})
    halving = SuccessiveHalving(HalvingConfig(factor=2, epochs=2), jobs)
    assert [(rung.epoch, rung.n_candidates, rung.n_survivors) for rung in halving.rungs] == [
        (2, 9, 4),
        (4, 4, 2),
        (8, 2, 1),
    ]
    # Two seeds each: 9 to epoch 2, 4 to epoch 4, 2 to epoch 8, 1 to epoch 20.
    assert halving.expected_work == pytest.approx(2 * (9 * 2 + 4 * 2 + 2 * 4 + 1 * 12) / 20)
    assert SuccessiveHalving(HalvingConfig(factor=None, epochs=1), jobs).rungs == []


def test_seeds_are_judged_together_by_what_was_known_at_the_rung(tmp_path: Path) -> None:
    values: dict[tuple[float, int], list[float | None]] = {
        (0.1, 0): [9.0, 1.0],  # the best seed of all, and the worst
        (0.1, 1): [1.0, 99.0],  # what came later does not count
        (0.2, 0): [6.0],
        (0.2, 1): [6.0],
        (0.3, 0): [9.0],
        (0.3, 1): [None],  # a seed that failed
    }
    jobs = jobs_with(tmp_path, values)
    halving = SuccessiveHalving(HalvingConfig(factor=3, epochs=1), jobs)
    better = halving.select_survivors(jobs, halving.rungs[0])
    assert [job.config.optimizer.lr for job in better] == [0.2, 0.2]


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep with three settings of which one comes to its end, with two seeds each."""
    folder = tmp_path_factory.mktemp("halved")
    ended = genexp(*sweep(folder, *HALVING))
    assert ended.code == 0
    assert "epoch 1: the best 1 of 3 configurations go on" in ended.out
    assert "to go on" not in ended.out
    return folder


def epochs(folder: Path) -> dict[str, int]:
    return {number: status(folder / number)["epoch"] for number in states(folder)}


def test_a_survivor_is_the_run_that_was_never_halted(halved: Path, tmp_path: Path) -> None:
    survivors = [number for number, epoch in epochs(halved).items() if epoch == 3]
    assert survivors == ["2", "5"]  # both seeds of the largest rate, which learns fastest
    assert sorted(states(halved).values()) == ["finished"] * 2 + ["stopped"] * 4
    assert genexp(*SHORT, "optimizer.lr=1e-2", "seed=1", "trainer.epochs=3", f"hydra.run.dir={tmp_path}").code == 0
    assert metrics(halved / "5") == metrics(tmp_path)


def test_killed_and_gone_on_with_it_is_the_same(halved: Path, tmp_path: Path) -> None:
    with background(*sweep(tmp_path, *HALVING)) as process:
        while not (tmp_path / "2" / "status.json").exists() or status(tmp_path / "2")["epoch"] < 2:
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
        ("sweep.halving.factor=2 trainer.objective=mse,l1", "by one metric, not by l1 (min) and mse (min)"),
        ("sweep.halving.factor=2 hydra/sweeper=optuna", "a search chooses one after the other"),
    ],
)
def test_what_cannot_be_halved_is_refused(words: str, said: str, tmp_path: Path) -> None:
    ended = genexp(*sweep(tmp_path / "sweep", "seed=0,1", RATES, "trainer.epochs=5", *words.split()))
    assert (ended.code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = ended.err.splitlines()
    assert said in line
