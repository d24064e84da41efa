"""Configurations composed as by the command line, and techniques built from them."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf

from genexp.config import bind, find_config_dir, to_plain_config
from genexp.data.dataset import DataSpec
from genexp.runs.config import ExperimentConfig, bind_experiment
from genexp.technique import find_technique, list_techniques
from tests.support.command import (
    TINY_BATCH_SIZE,
    TINY_RUN_OVERRIDES,
)

TECHNIQUES = list_techniques()
SMALL_MODEL_VALUES = {  # for each model that has these keys
    "weights": "random",  # pretrained weights need a network
    "scales": [1.0],  # half of a small image is too small for the layers
    "generator_width": 4,
    "discriminator_width": 4,
    "hidden": [24, 16],
    "evaluation_samples": 20,
    "width": 8,
    "function_evaluations": 2,
    "compared_evaluations": [2],
    "codes": 8,
    "prior_width": 8,
    "prior_layers": 1,
    "n_init": 2,
}


@cache
def compose_config(*overrides: str) -> DictConfig:
    """Return the configuration that the command line would compose."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def compose_values(*overrides: str) -> dict[str, Any]:
    """Return the configuration that the command line would compose, as resolved, plain values."""
    return to_plain_config(compose_config(*overrides))


def compose_experiment(*overrides: str) -> ExperimentConfig:
    """Return the configuration that the command line would compose, bound to dataclasses."""
    return bind_experiment(compose_values(*overrides))


def list_config_names(group: str) -> list[str]:
    """Return the names of the files of a config group."""
    return sorted(path.stem for path in (find_config_dir() / group).glob("*.yaml"))


def list_field_names(cls: type) -> set[str]:
    """Return the names of the fields of a dataclass."""
    return {field.name for field in fields(cls)}


def make_tiny_overrides(name: str) -> list[str]:
    """Return the overrides of a run of the technique `name` that takes a second."""
    config = compose_config(f"model={name}")
    batch_size = config.trainer.batch_size
    overrides = (
        [] if batch_size is None or batch_size < TINY_BATCH_SIZE else [f"trainer.batch_size={TINY_BATCH_SIZE}"]
    )
    overrides += [
        f"model.{key}={value}"
        for key, value in SMALL_MODEL_VALUES.items()
        if is_compatible_value(value, config.model.get(key))
    ]
    if config.model.get("widths"):
        overrides.append(f"model.widths=[24,{config.model.widths[-1]}]")  # the latent is the last layer
    if config.dataset.get("size"):  # not the size of the files
        overrides.append("dataset.size=32")
    return [f"model={name}", *TINY_RUN_OVERRIDES, *overrides]


def is_compatible_value(value: object, default: object) -> bool:
    """Return whether a model with this default accepts the value: it exists, and both or neither are lists."""
    return default is not None and isinstance(value, list) == isinstance(default, ListConfig)


def make_technique(name: str, shape: tuple[int, int, int], *overrides: str) -> Any:
    """Return the technique `name` for images of `shape`, (channels, height, width)."""
    node = OmegaConf.to_container(compose_config(*overrides).model)
    assert isinstance(node, dict)
    settings = {str(key): value for key, value in node.items() if key not in ("name", "recipe")}
    cls = find_technique(name)
    config: Any = bind(cls.Config, settings, "model")
    return cls(config, DataSpec("made up", {"image": shape, "label": ()}, 100))
