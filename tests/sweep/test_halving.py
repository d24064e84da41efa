"""Successive halving: rungs, ranking, resumption and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from genexp.sweep.halving import HalvingConfig, SuccessiveHalving
from genexp.sweep.job import Job
from tests.support.command import load_status, read_metrics_log, run_genexp, start_genexp, wait_for
from tests.support.sweeps import SHORT_RUN_OVERRIDES, load_job_states, make_sweep_arguments

LEARNING_RATE_SWEEP = "optimizer.lr=1e-6,1e-4,1e-2"
HALVING = ("seed=0,1", LEARNING_RATE_SWEEP, "trainer.epochs=3", "sweep.halving.factor=3")


def make_jobs(sweep_dir: Path, values: dict[tuple[float, int], list[float | None]], **trainer: Any) -> list[Job]:
    """Return a job for each (learning rate, seed), with a logged objective for each epoch."""
    jobs = []
    for number, ((lr, seed), epoch_values) in enumerate(values.items()):
        settings = {"epochs": 20, "evaluate_every": 1, "objective": "test/psnr", "direction": "max", **trainer}
        config = OmegaConf.create({"optimizer": {"lr": lr}, "seed": seed, "trainer": settings})
        rows = [
            {"step": epoch, "epoch": epoch, "split": "test", "psnr": value}
            for epoch, value in enumerate(epoch_values, 1)
        ]
        (sweep_dir / str(number)).mkdir()
        (sweep_dir / str(number) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        jobs.append(Job(number, sweep_dir / str(number), config, hydra_context=None))  # type: ignore[arg-type]
    return jobs


def test_rungs_grow_by_factor_until_one_configuration_is_left(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, {(0.1 * n, seed): [] for n in range(9) for seed in (0, 1)})
    halving = SuccessiveHalving(HalvingConfig(factor=2, epochs=2), jobs)
    assert [(rung.epoch, rung.n_candidates, rung.n_survivors) for rung in halving.rungs] == [
        (2, 9, 4),
        (4, 4, 2),
        (8, 2, 1),
    ]
    # Two seeds each: 9 to epoch 2, 4 to epoch 4, 2 to epoch 8, 1 to epoch 20.
    assert halving.expected_work == pytest.approx(2 * (9 * 2 + 4 * 2 + 2 * 4 + 1 * 12) / 20)
    assert SuccessiveHalving(HalvingConfig(factor=None, epochs=1), jobs).rungs == []


def test_seeds_are_ranked_by_their_mean_at_the_rung(tmp_path: Path) -> None:
    values: dict[tuple[float, int], list[float | None]] = {
        (0.1, 0): [9.0, 1.0],  # the best seed of all, and the worst
        (0.1, 1): [1.0, 99.0],  # values after the rung do not count
        (0.2, 0): [6.0],
        (0.2, 1): [6.0],
        (0.3, 0): [9.0],
        (0.3, 1): [None],  # a seed that failed
    }
    jobs = make_jobs(tmp_path, values)
    halving = SuccessiveHalving(HalvingConfig(factor=3, epochs=1), jobs)
    better = halving.select_survivors(jobs, halving.rungs[0])
    assert [job.config.optimizer.lr for job in better] == [0.2, 0.2]


@pytest.fixture(scope="module")
def halving_sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of three configurations with two seeds each, of which one survives."""
    folder = tmp_path_factory.mktemp("halved")
    result = run_genexp(*make_sweep_arguments(folder, *HALVING))
    assert result.exit_code == 0
    assert "epoch 1: the best 1 of 3 configurations continue" in result.stdout
    assert "  resume " not in result.stdout
    return folder


def load_job_epochs(sweep_dir: Path) -> dict[str, int]:
    return {number: load_status(sweep_dir / number)["epoch"] for number in load_job_states(sweep_dir)}


def test_survivor_equals_a_run_that_was_never_halted(halving_sweep_dir: Path, tmp_path: Path) -> None:
    survivors = [number for number, epoch in load_job_epochs(halving_sweep_dir).items() if epoch == 3]
    assert survivors == ["2", "5"]  # both seeds of the largest rate, which learns fastest
    assert sorted(load_job_states(halving_sweep_dir).values()) == ["finished"] * 2 + ["stopped"] * 4
    assert (
        run_genexp(
            *SHORT_RUN_OVERRIDES, "optimizer.lr=1e-2", "seed=1", "trainer.epochs=3", f"hydra.run.dir={tmp_path}"
        ).exit_code
        == 0
    )
    assert read_metrics_log(halving_sweep_dir / "5") == read_metrics_log(tmp_path)


def test_killed_and_resumed_halving_equals_uninterrupted(halving_sweep_dir: Path, tmp_path: Path) -> None:
    with start_genexp(*make_sweep_arguments(tmp_path, *HALVING)) as process:
        status = tmp_path / "2" / "status.json"
        wait_for(
            lambda: status.exists() and load_status(status.parent)["epoch"] >= 2, seconds=120, process=process
        )
    result = run_genexp("-m", *SHORT_RUN_OVERRIDES, *HALVING, f"sweep.resume={tmp_path}")
    assert result.exit_code == 0
    assert (load_job_states(tmp_path), load_job_epochs(tmp_path)) == (
        load_job_states(halving_sweep_dir),
        load_job_epochs(halving_sweep_dir),
    )
    for number in load_job_states(halving_sweep_dir):
        assert read_metrics_log(tmp_path / number) == read_metrics_log(halving_sweep_dir / number)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("sweep.halving.factor=1", "sweep.halving.factor=1: must be at least 2, or null"),
        ("sweep.halving.factor=half", "sweep.halving.factor=half: must be an integer or null"),
        ("sweep.halving.factor=2 trainer.evaluate_every=2", "must be a multiple of trainer.evaluate_every=2"),
        (
            "sweep.halving.factor=2 trainer.objective=mse,l1",
            "jobs have different objectives (l1 (min), mse (min))",
        ),
        ("sweep.halving.factor=2 hydra/sweeper=optuna", "cannot be combined with hydra/sweeper=optuna"),
    ],
)
def test_invalid_halving_settings_are_rejected(overrides: str, message: str, tmp_path: Path) -> None:
    result = run_genexp(
        *make_sweep_arguments(
            tmp_path / "sweep", "seed=0,1", LEARNING_RATE_SWEEP, "trainer.epochs=5", *overrides.split()
        )
    )
    assert (result.exit_code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = result.stderr.splitlines()
    assert message in line
