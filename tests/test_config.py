"""Keys of the YAML files and binding of configurations to dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from genexp.config import bind, find_config_dir, require, suggest_choice
from genexp.data.registry import find_dataset, list_datasets
from genexp.device import DeviceConfig
from genexp.errors import ConfigError
from genexp.runs.config import TopLevelConfig
from genexp.sweep.config import SweepConfig
from genexp.training.optimizers import OPTIMIZERS, TorchOptimizerConfig
from genexp.training.trainer import TrainerConfig
from tests.support.command import TINY_RUN_OVERRIDES, format_run_dir_override, load_status, run_genexp
from tests.support.compose import compose_config, compose_values, list_config_names, list_field_names


@pytest.mark.parametrize("name", list_config_names("optimizer"))
def test_optimizer_file_has_the_keys_of_its_dataclass(name: str) -> None:
    node = yaml.safe_load((find_config_dir() / "optimizer" / f"{name}.yaml").read_text())
    if name == "torch":
        assert set(node) == list_field_names(TorchOptimizerConfig)
        return
    assert node["name"] == name
    assert set(node) == list_field_names(OPTIMIZERS[name].config_class)


def test_every_optimizer_has_a_file() -> None:
    assert list_config_names("optimizer") == sorted([*OPTIMIZERS, "torch"])


@pytest.mark.parametrize("name", list_config_names("trainer"))
def test_trainer_file_has_the_keys_of_its_dataclass(name: str) -> None:
    assert {str(key) for key in compose_config(f"trainer={name}").trainer} == list_field_names(TrainerConfig)


@pytest.mark.parametrize("name", list_config_names("device"))
def test_device_file_has_the_keys_of_its_dataclass(name: str) -> None:
    node = yaml.safe_load((find_config_dir() / "device" / f"{name}.yaml").read_text())
    assert node["name"] == name
    assert set(node) == list_field_names(DeviceConfig)


@pytest.mark.parametrize("name", list_config_names("dataset"))
def test_dataset_file_has_the_keys_of_its_dataclass(name: str) -> None:
    node = yaml.safe_load((find_config_dir() / "dataset" / f"{name}.yaml").read_text())
    node.pop("defaults", None)
    assert node["name"] == name
    assert set(node) == list_field_names(find_dataset(name))


def test_every_dataset_has_a_file() -> None:
    assert list_config_names("dataset") == list_datasets()


def test_top_level_configuration_has_the_keys_of_its_dataclass() -> None:
    groups = {"model", "dataset", "optimizer", "trainer", "device"}
    assert {str(key) for key in compose_config()} - groups - {"sweep"} == list_field_names(TopLevelConfig)


def test_sweep_section_has_the_keys_of_its_dataclass() -> None:
    assert {str(key) for key in compose_config().sweep} == list_field_names(SweepConfig)


def test_every_key_of_the_trainer_can_be_set() -> None:
    expected: dict[str, Any] = {
        "epochs": 7,
        "early_stopping": 5,
        "min_improvement": 0.25,
        "epoch_steps": 12,
        "max_steps": 11,
        "init_from": "outputs/runs/vae",
        "time_budget": 1.5,
        "batch_size": 13,
        "accumulate": 3,
        "precision": "bf16",
        "compile": True,
        "capture": True,
        "gradient_clip": 0.5,
        "ema": 0.9,
        "evaluate_every": 3,
        "preview_every": 4,
        "checkpoint_every": 5,
        "checkpoint_spacing": 6.5,
        "keep_checkpoints": 8,
        "final_checkpoint": "weights",
        "debug": True,
        "deterministic": True,
        "objective": "psnr",
        "direction": "max",
        "metrics": [],
        "video": "mp4",
    }
    assert expected.keys() == list_field_names(TrainerConfig)
    overrides = [f"trainer.{key}={value}" for key, value in expected.items()]
    assert vars(bind(TrainerConfig, compose_config(*overrides).trainer, "trainer")) == expected


def test_zero_intervals_mean_never() -> None:
    overrides = [f"trainer.{key}=0" for key in ("evaluate_every", "preview_every", "checkpoint_every")]
    settings = bind(TrainerConfig, compose_config(*overrides).trainer, "trainer")
    assert (settings.evaluate_every, settings.preview_every, settings.checkpoint_every) == (0, 0, 0)


def test_optimizer_and_trainer_read_the_recipe_of_the_model() -> None:
    recipe = compose_config("model=dcgan").model.recipe
    assert compose_config("model=dcgan", "optimizer=rmsprop").optimizer.lr == recipe.lr
    assert compose_config("model=dcgan", "optimizer=rmsprop", "optimizer.lr=3e-4").optimizer.lr == 3e-4
    assert compose_config("model=dcgan", "model.recipe.lr=0.5").optimizer.lr == 0.5
    assert compose_config("model=dcgan", "model.recipe.epochs=3").trainer.epochs == 3
    assert compose_config("model=kmeans").trainer.batch_size is None  # null in the recipe is not the default


@pytest.mark.parametrize("model", list_config_names("model"))
def test_recipe_lists_only_what_differs_from_the_defaults(model: str) -> None:
    recipe = compose_config(f"model={model}").model.recipe
    defaults = compose_values(f"model={model}", "optimizer=adam", "~model.recipe")
    for key, value in OmegaConf.to_container(recipe).items():  # type: ignore[union-attr]
        group = "optimizer" if key in defaults["optimizer"] else "trainer"
        assert defaults[group][str(key)] != value, key


def test_technique_without_gradients_states_no_learning_rate() -> None:
    assert "lr" not in compose_config("model=kmeans").model.recipe


def test_model_without_a_recipe_trains(tmp_path: Path) -> None:
    overrides = (
        "~model.recipe",
        "trainer.objective=mse",
        "trainer.max_steps=1",
        format_run_dir_override(tmp_path),
    )
    assert (
        run_genexp("model=stacked_autoencoder", *TINY_RUN_OVERRIDES, "trainer.batch_size=8", *overrides).exit_code
        == 0
    )
    assert load_status(tmp_path)["objective"] == "mse"


@dataclass
class Settings:
    """Settings with a field of each supported type."""

    count: int
    rate: float
    word: str
    flag: bool
    widths: list[int]
    limit: int | None
    options: dict[str, Any]

    def __post_init__(self) -> None:
        require(self.count > 0, "count", self.count, "must be at least 1")


VALID_VALUES: dict[str, Any] = {
    "count": 1,
    "rate": 0.5,
    "word": "a",
    "flag": True,
    "widths": [3, 4],
    "limit": None,
    "options": {},
}


def test_valid_values_bind() -> None:
    assert bind(Settings, VALID_VALUES, "group") == Settings(1, 0.5, "a", True, [3, 4], None, {})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", "x", "group.count=x: must be an integer."),
        ("count", 2.5, "group.count=2.5: must be an integer."),
        ("count", None, "group.count=null: must be an integer."),
        ("count", [1], "group.count=[1]: must be an integer."),
        ("count", {"a": 1}, "group.count={'a': 1}: must be an integer."),
        ("count", 0, "group.count=0: must be at least 1."),
        ("count", "???", "group.count: missing. Set group.count=VALUE."),
        ("rate", "fast", "group.rate=fast: must be a number."),
        ("word", [1], "group.word=[1]: must be a string."),
        ("flag", "perhaps", "group.flag=perhaps: must be true or false."),
        ("flag", 3, "group.flag=3: must be true or false."),
        ("options", 5, "group.options=5: must be a mapping, {NAME: VALUE}."),
        ("options", None, "group.options=null: must be a mapping, {NAME: VALUE}."),
        ("widths", 5, "group.widths=5: must be a list of integers."),
        ("widths", [3, "x"], "group.widths=[3, 'x']: must be a list of integers."),
        ("widths", None, "group.widths=null: must be a list of integers."),
        ("widths", {"a": 1}, "group.widths={'a': 1}: must be a list of integers."),
        ("limit", "all", "group.limit=all: must be an integer or null."),
        ("contu", 5, "group.contu: unknown key. Did you mean count?"),
    ],
)
def test_invalid_value_is_reported_with_the_expected_type(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as excinfo:
        bind(Settings, {**VALID_VALUES, key: value}, "group")
    assert str(excinfo.value) == message


def test_missing_key_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"group\.rate: missing"):
        bind(Settings, {key: value for key, value in VALID_VALUES.items() if key != "rate"}, "group")


def test_suggest_choice_returns_the_nearest_or_all_choices() -> None:
    assert suggest_choice("vea", ["vae", "gan"]) == "Did you mean vae?"
    assert (
        suggest_choice("optimizer.learning_rate", ["optimizer.lr", "optimizer.name"])
        == "Did you mean optimizer.lr?"
    )
    assert suggest_choice("zzz", ["vae", "gan"]) == "Use one of: gan, vae."
