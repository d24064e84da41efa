"""Learning rates that are reduced when the objective does not improve, also after a resumption."""

from __future__ import annotations

from pathlib import Path

import pytest

from genexp.distributed import launch
from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint
from genexp.runs.run import run_experiment
from genexp.snapshot import RunProgress
from genexp.technique import Clock
from genexp.training.optimizers import learning_rate, plan_optimizers
from genexp.training.progress import ProgressTracker
from tests.support.assertions import assert_close_to_scale, assert_same_run
from tests.support.command import (
    ForkedRank,
    format_run_dir_override,
    get_error_line,
    load_newest_state,
    run_genexp,
)
from tests.support.compose import compose_values, make_tiny_overrides
from tests.support.sweeps import make_sweep_arguments

OVERRIDES = (
    *make_tiny_overrides("stacked_autoencoder"),
    *("trainer.epochs=7", "trainer.min_improvement=100", "trainer.preview_every=0", "trainer.precision=fp32"),
    *("optimizer.schedule=plateau", "optimizer.plateau_patience=2", "optimizer.plateau_factor=0.5"),
)


def count_reductions(run_dir: Path) -> dict[str, int]:
    counts: dict[str, int] = load_checkpoint(list_checkpoints(run_dir)[0])["progress"]["plateau_reductions"]
    return counts


def test_rate_is_reduced_after_each_period_without_improvement() -> None:
    tracker = ProgressTracker("loss", "min", 10, 0, RunProgress(), plateau_steps={"a": 20, "b": 40})
    found = []
    for epoch, loss in enumerate([5.0, 4.0, 4.0, 4.5, 4.5, 4.5, 3.0, 3.0, 3.0, float("nan")], start=1):
        tracker.add_scores({"loss": loss}, 10 * epoch)
        found.append(dict(tracker.progress.plateau_reductions))
    assert [counts.get("a", 0) for counts in found] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert [counts.get("b", 0) for counts in found] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_rate_follows_the_number_of_reductions_after_the_warmup() -> None:
    overrides = ("optimizer.lr=0.8", "optimizer.plateau_factor=0.5", "optimizer.warmup_steps=4")
    values = compose_values("optimizer.schedule=plateau", *overrides)
    config = plan_optimizers(values["optimizer"]).shared_config
    assert learning_rate(config, Clock(2, 100, 10)) == pytest.approx(0.4)
    assert learning_rate(config, Clock(50, 100, 10)) == 0.8
    assert learning_rate(config, Clock(50, 100, 10), 3) == pytest.approx(0.1)


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_resumed_runs_have_the_rates_of_uninterrupted_ones(
    epoch: int, whole_run_dir: Path, tmp_path: Path
) -> None:
    values = compose_values(*OVERRIDES)
    assert count_reductions(whole_run_dir) == {"autoencoder": 3}
    run_experiment(values, tmp_path, until_epoch=epoch)
    run_experiment(values | {"resume": str(tmp_path)}, tmp_path)
    assert_same_run(whole_run_dir, tmp_path)


@pytest.fixture(scope="module")
def whole_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("plateau")
    run_experiment(compose_values(*OVERRIDES), run_dir)
    return run_dir


def test_reductions_reach_all_processes(
    whole_run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_start_process", ForkedRank)
    result = run_genexp(*OVERRIDES, "device.processes=2", format_run_dir_override(tmp_path / "two"))
    assert result.exit_code == 0, result.stderr
    two, one = (load_newest_state(run_dir)["technique"] for run_dir in (tmp_path / "two", whole_run_dir))
    assert_close_to_scale(two, one, 1e-3)


def test_ensembles_run_such_jobs_singly(tmp_path: Path) -> None:
    overrides = ("trainer.epochs=1", "optimizer.schedule=plateau", "hydra/launcher=vectorized")
    result = run_genexp(*make_sweep_arguments(tmp_path, "seed=0,1", *overrides))
    assert result.exit_code == 0, result.stderr
    assert "run sequentially: optimizer.schedule=plateau depends on the scores of a run" in result.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.evaluate_every=0",), "optimizer.schedule=plateau: requires trainer.evaluate_every above 0"),
        (("optimizer.plateau_patience=0",), "optimizer.plateau_patience=0: must be at least 1"),
        (("optimizer.plateau_factor=1",), "optimizer.plateau_factor=1.0: must be between 0 and 1"),
    ],
)
def test_wrong_values_are_one_line(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    arguments = ("optimizer.schedule=plateau", *overrides, format_run_dir_override(tmp_path / "run"))
    assert message in get_error_line(run_genexp(*arguments), "genexp")
