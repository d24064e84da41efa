"""Runs that start from the weights of another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint
from genexp.runs.load import find_checkpoint
from tests.support.assertions import assert_same, assert_same_run
from tests.support.command import format_run_dir_override, get_error_line, run_genexp
from tests.support.compose import make_tiny_overrides

OVERRIDES = ("trainer.epochs=2", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=9")


def run_technique(name: str, run_dir: Path, *overrides: str) -> None:
    result = run_genexp(*make_tiny_overrides(name), *OVERRIDES, *overrides, format_run_dir_override(run_dir))
    assert result.exit_code == 0, result.stderr


@pytest.fixture(scope="module")
def source_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with averaged weights."""
    run_dir = tmp_path_factory.mktemp("source") / "run"
    run_technique("vae", run_dir, "trainer.ema=0.5")
    return run_dir


def test_run_starts_from_the_best_weights_and_resumes_exactly(source_dir: Path, tmp_path: Path) -> None:
    run_dir, resumed = tmp_path / "run", tmp_path / "resumed"
    run_technique("vae", run_dir, f"trainer.init_from={source_dir}", "optimizer.lr=1e-4", "seed=1")
    first = load_checkpoint(list_checkpoints(run_dir)[-1])
    assert first["step"] == 0
    assert_same(first["technique"], load_checkpoint(find_checkpoint(source_dir, "best"))["average"])
    assert "initial weights: " in (run_dir / "train.log").read_text()
    shutil.copytree(run_dir, resumed)
    list_checkpoints(resumed)[0].unlink()
    (resumed / "status.json").unlink()
    assert run_genexp(f"resume={resumed}").exit_code == 0
    assert_same_run(run_dir, resumed)


def test_initialization_from_data_does_not_replace_the_weights(tmp_path: Path) -> None:
    run_technique("vq_vae", tmp_path / "source")
    run_technique("vq_vae", tmp_path / "run", f"trainer.init_from={tmp_path / 'source'}", "seed=5")
    source = load_checkpoint(find_checkpoint(tmp_path / "source", "best"))["technique"]
    first = load_checkpoint(list_checkpoints(tmp_path / "run")[-1])["technique"]
    assert torch.equal(first["quantizer.codebook"], source["quantizer.codebook"])


def test_unsuitable_source_is_one_line(source_dir: Path, tmp_path: Path) -> None:
    cases: dict[tuple[str, ...], str] = {
        ("model=vae", "model.latent=3"): "does not match model=vae of trainer.init_from=",
        ("model=kmeans", "dataset=mnist_5k"): "model=kmeans has no gradient phase",
        ("model=stacked_autoencoder",): "does not match model=stacked_autoencoder of trainer.init_from=",
    }
    for overrides, message in cases.items():
        arguments = (*overrides, f"trainer.init_from={source_dir}", format_run_dir_override(tmp_path / "run"))
        assert message in get_error_line(run_genexp(*arguments), "genexp")
        shutil.rmtree(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for folder, message in (
        ("absent", "not a directory. Use the directory of a run."),
        ("empty", "not a run directory (no config.yaml)"),
    ):
        source = f"trainer.init_from={tmp_path / folder}"
        result = run_genexp(source, format_run_dir_override(tmp_path / "run"))
        assert message in get_error_line(result, "genexp")
        shutil.rmtree(tmp_path / "run")
