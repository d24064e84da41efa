"""Early stopping: the run ends when its objective has not improved, also when it is resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from genexp.run_dir.checkpoint import list_checkpoints
from tests.support.assertions import assert_same_run
from tests.support.command import (
    format_run_dir_override,
    get_error_line,
    load_status,
    read_metrics_log,
    run_genexp,
)
from tests.support.compose import make_tiny_overrides
from tests.support.sweeps import make_sweep_arguments

# No improvement is large enough: the run ends two epochs after its first evaluation.
OVERRIDES = (
    *make_tiny_overrides("stacked_autoencoder"),
    "trainer.epochs=9",
    "trainer.early_stopping=2",
    "trainer.min_improvement=100",
    "trainer.checkpoint_every=1",
    "trainer.keep_checkpoints=9",
)


@pytest.fixture(scope="module")
def stopped_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that ended early."""
    run_dir = tmp_path_factory.mktemp("early") / "run"
    result = run_genexp(*OVERRIDES, format_run_dir_override(run_dir))
    assert result.exit_code == 0, result.stderr
    return run_dir


def find_last_epoch(run_dir: Path) -> int:
    return int(read_metrics_log(run_dir)[-1]["epoch"])


def test_run_ends_without_improvement_and_is_finished(stopped_run_dir: Path) -> None:
    assert find_last_epoch(stopped_run_dir) == 3
    assert load_status(stopped_run_dir)["state"] == "finished"
    evaluated = [line["epoch"] for line in read_metrics_log(stopped_run_dir) if line["split"] == "test"]
    assert evaluated == [1, 2, 3]
    assert "already finished" in get_error_line(run_genexp(f"resume={stopped_run_dir}"), "genexp")


@pytest.mark.parametrize("kept", [2, 3])
def test_resumed_run_ends_at_the_same_epoch(stopped_run_dir: Path, kept: int, tmp_path: Path) -> None:
    resumed = tmp_path / "resumed"
    shutil.copytree(stopped_run_dir, resumed)
    for file in list_checkpoints(resumed)[:-kept]:
        file.unlink()
    (resumed / "status.json").unlink()
    result = run_genexp(f"resume={resumed}")
    assert result.exit_code == 0, result.stderr
    assert_same_run(stopped_run_dir, resumed)


def test_finished_run_continues_with_more_patience(stopped_run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped_run_dir, tmp_path / "run")
    result = run_genexp(f"resume={tmp_path / 'run'}", "trainer.early_stopping=4")
    assert result.exit_code == 0, result.stderr
    assert find_last_epoch(tmp_path / "run") == 5


def test_run_that_improves_does_not_end(tmp_path: Path) -> None:
    result = run_genexp(
        *OVERRIDES, "trainer.epochs=4", "trainer.min_improvement=0", format_run_dir_override(tmp_path)
    )
    assert result.exit_code == 0, result.stderr
    assert find_last_epoch(tmp_path) == 4


def test_jobs_of_an_ensemble_run_one_after_the_other(tmp_path: Path) -> None:
    early_stopping = ("trainer.epochs=5", "trainer.early_stopping=1", "trainer.min_improvement=100")
    arguments = make_sweep_arguments(tmp_path, "seed=0,1", "hydra/launcher=vectorized", *early_stopping)
    result = run_genexp(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "run sequentially: trainer.early_stopping ends the jobs at different steps" in result.stdout
    assert find_last_epoch(tmp_path / "0") == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.early_stopping=0",), "trainer.early_stopping=0: must be positive, or null"),
        (("trainer.min_improvement=-1",), "trainer.min_improvement=-1.0: must be 0 or more"),
        (
            ("trainer.early_stopping=2", "trainer.evaluate_every=0"),
            "trainer.early_stopping=2: requires trainer.evaluate_every above 0",
        ),
    ],
)
def test_invalid_settings_are_rejected(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in get_error_line(run_genexp(*overrides, format_run_dir_override(tmp_path / "run")), "genexp")
