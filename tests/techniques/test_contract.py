"""What every technique keeps to, the project's own and any that is added."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from genexp.config import bind
from genexp.data import load_dataset
from genexp.run_dir.checkpoint import list_checkpoints
from genexp.technique import find_technique
from tests.support.command import (
    assert_same,
    assert_same_run,
    genexp,
    in_folder,
    metrics,
    status,
)
from tests.support.compose import NAMES, composed, tiny

RECIPE = {
    *("lr", "betas", "weight_decay", "schedule", "batch_size", "epochs", "ema", "precision"),
    *("evaluate_every", "preview_every", "objective", "direction"),
}


@pytest.mark.parametrize("name", NAMES)
def test_name_is_file_is_yaml(name: str) -> None:
    cls = find_technique(name)
    node = composed(f"model={name}").model
    assert cls.name == name == node.name
    assert cls.__module__ == f"genexp.techniques.{name}"
    assert set(node) - {"name", "recipe"} == {field.name for field in fields(cls.Config)}
    assert set(node.recipe) == RECIPE


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_round_trip(name: str) -> None:
    cfg = composed(*tiny(name))
    cls = find_technique(name)
    node = {str(key): value for key, value in cfg.model.items() if key not in ("name", "recipe")}
    config: Any = bind(cls.Config, OmegaConf.create(node), "model")
    spec = load_dataset(cfg.dataset).spec
    first, second = cls(config, spec), cls(config, spec)
    second.load_state_dict(first.state_dict())
    assert_same(dict(first.state_dict()), dict(second.state_dict()))


@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_straight(name: str, tmp_path: Path) -> None:
    """A run whose later checkpoints never came to be, as if killed there, ends as the one that went through."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    often = ("trainer.epochs=3", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=9")
    looks = ("trainer.evaluate_every=1", "trainer.preview_every=1")
    ended = genexp(*tiny(name), *often, *looks, in_folder(straight))
    assert ended.code == 0, ended.err
    shutil.copytree(straight, resumed)
    *later, _, _ = list_checkpoints(resumed)  # those of the first epoch and of step 0 stay
    for file in later:
        file.unlink()
    (resumed / "status.json").unlink()
    ended = genexp(f"resume={resumed}")
    assert ended.code == 0, ended.err
    assert_same_run(straight, resumed)


@pytest.mark.parametrize("name", NAMES)
def test_looking_changes_nothing(name: str, tmp_path: Path) -> None:
    """Losses are the same bits with evaluation and previews on or off."""
    looking, blind = tmp_path / "looking", tmp_path / "blind"
    steps = (*tiny(name), "trainer.max_steps=3")
    assert genexp(*steps, "trainer.evaluate_every=1", "trainer.preview_every=1", in_folder(looking)).code == 0
    assert genexp(*steps, "trainer.evaluate_every=0", "trainer.preview_every=0", in_folder(blind)).code == 0
    assert [line for line in metrics(looking) if line["split"] == "train"] == metrics(blind)


@pytest.mark.parametrize("name", NAMES)
def test_objective_is_a_metric_of_the_technique(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert genexp(*tiny(name), "trainer.max_steps=1", in_folder(folder)).code == 0
    state = status(folder)
    recipe = composed(f"model={name}").model.recipe
    assert state["best"]["value"] == state["test"][recipe.objective]
    cls = find_technique(name)
    assert (recipe.objective, recipe.direction) == (cls.objective, cls.direction)


def test_same_seed_same_run(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        assert genexp(*tiny("vae"), "trainer.max_steps=3", in_folder(folder)).code == 0
    assert_same_run(first, second)
    other = tmp_path / "other"
    assert genexp(*tiny("vae"), "trainer.max_steps=3", "seed=1", in_folder(other)).code == 0
    assert metrics(first) != metrics(other)
