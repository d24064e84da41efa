"""Contract of all techniques: names, state, resumption, evaluation and objective."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from genexp.config import bind
from genexp.data import load_dataset
from genexp.run_dir.checkpoint import list_checkpoints
from genexp.run_dir.metrics import find_metric
from genexp.runs.build import build_technique
from genexp.technique import find_technique
from tests.support.assertions import assert_same, assert_same_run
from tests.support.command import FIGURES_ON, format_run_dir_override, load_status, read_metrics_log, run_genexp
from tests.support.compose import TECHNIQUES, compose_config, compose_experiment, make_tiny_overrides
from tests.support.datasets import load_values

RECIPE_KEYS = {
    *("lr", "betas", "weight_decay", "schedule", "batch_size", "epochs", "ema", "precision"),
    *("evaluate_every", "preview_every", "objective", "direction"),
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_technique_file_and_yaml_names_match(name: str) -> None:
    cls = find_technique(name)
    node = compose_config(f"model={name}").model
    assert cls.name == name == node.name
    assert cls.__module__ == f"genexp.techniques.{name}"
    assert set(node) - {"name", "recipe"} == {field.name for field in fields(cls.Config)}
    assert set(node.get("recipe", {})) <= RECIPE_KEYS


@pytest.mark.parametrize("name", TECHNIQUES)
def test_state_survives_a_round_trip(name: str) -> None:
    cfg = compose_config(*make_tiny_overrides(name))
    cls = find_technique(name)
    node = {str(key): value for key, value in cfg.model.items() if key not in ("name", "recipe")}
    config: Any = bind(cls.Config, OmegaConf.create(node), "model")
    spec = load_values(cfg.dataset).spec
    first, second = cls(config, spec), cls(config, spec)
    second.load_state_dict(first.state_dict())
    assert_same(dict(first.state_dict()), dict(second.state_dict()))


@dataclass(frozen=True)
class FinishedRun:
    """A run of three epochs with evaluations, previews and checkpoints."""

    overrides: tuple[str, ...]
    run_dir: Path


@pytest.fixture(scope="module", params=TECHNIQUES)
def finished_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Return a finished run of each technique, which the tests below share."""
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    checkpoint_overrides = ("trainer.checkpoint_every=1", "trainer.keep_checkpoints=9")
    run = FinishedRun(
        (*make_tiny_overrides(request.param), FIGURES_ON, "trainer.epochs=3", *checkpoint_overrides), run_dir
    )
    interval_overrides = ("trainer.evaluate_every=1", "trainer.preview_every=1")
    result = run_genexp(*run.overrides, *interval_overrides, format_run_dir_override(run_dir))
    assert result.exit_code == 0, result.stderr
    return run


def test_resumed_run_equals_uninterrupted_run(finished_run: FinishedRun, tmp_path: Path) -> None:
    """A run without its later checkpoints, as if killed before them, ends like the uninterrupted run."""
    resumed = tmp_path / "resumed"
    shutil.copytree(finished_run.run_dir, resumed)
    *later, _, _ = list_checkpoints(resumed)  # the checkpoints of the first epoch and of step 0 remain
    for file in later:
        file.unlink()
    (resumed / "status.json").unlink()
    result = run_genexp(f"resume={resumed}", "recorders.figures=false")
    assert result.exit_code == 0, result.stderr
    assert_same_run(finished_run.run_dir, resumed)


def test_evaluation_and_previews_do_not_change_training(finished_run: FinishedRun, tmp_path: Path) -> None:
    """Losses are bit-identical with and without evaluation and previews."""
    overrides = ("trainer.evaluate_every=0", "trainer.preview_every=0", "recorders.figures=false")
    result = run_genexp(*finished_run.overrides, *overrides, format_run_dir_override(tmp_path))
    assert result.exit_code == 0, result.stderr
    evaluated = [line for line in read_metrics_log(finished_run.run_dir) if line["split"] == "train"]
    assert evaluated == read_metrics_log(tmp_path)


def test_objective_is_among_the_declared_metrics(finished_run: FinishedRun) -> None:
    state = load_status(finished_run.run_dir)
    config = compose_experiment(*finished_run.overrides)
    choose_best = max if config.trainer.direction == "max" else min
    log = read_metrics_log(finished_run.run_dir)
    objective = find_metric(config.trainer.objective, state["test"]) or ""
    values = [line[objective] for line in log if line["split"] == "test"]
    assert state["best"]["value"] == choose_best(values)
    dataset = load_dataset(config.dataset)
    technique = build_technique(config.technique, config.model, dataset, torch.device("cpu"), config.seed)
    assert sorted(technique.list_metrics() or ()) == sorted(state["test"])


def test_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        assert (
            run_genexp(
                *make_tiny_overrides("vae"), "trainer.max_steps=3", format_run_dir_override(folder)
            ).exit_code
            == 0
        )
    assert_same_run(first, second)
    other = tmp_path / "other"
    assert (
        run_genexp(
            *make_tiny_overrides("vae"), "trainer.max_steps=3", "seed=1", format_run_dir_override(other)
        ).exit_code
        == 0
    )
    assert read_metrics_log(first) != read_metrics_log(other)
