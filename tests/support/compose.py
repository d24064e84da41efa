"""Configurations as the command line composes them, and techniques built from them."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf

from genexp.config import bind, find_config_dir
from genexp.data.dataset import DataSpec
from genexp.technique import find_technique, list_techniques
from tests.support.command import (
    TINY,
    TINY_BATCH,
)

NAMES = list_techniques()


SMALLER = {  # values of keys that would make a run of a moment take longer, wherever a model has them
    "weights": "random",  # pretrained ones are not to be had without a network
    "generator_width": 4,
    "discriminator_width": 4,
    "hidden": [24, 16],
    "evaluation_samples": 20,
}


def composed(*overrides: str) -> DictConfig:
    """Return the configuration that the command line would compose."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def tiny(name: str) -> list[str]:
    """Return overrides that make a run of `name` take a moment."""
    cfg = composed(f"model={name}")
    batch_size = cfg.model.recipe.batch_size
    words = [] if batch_size is None or batch_size < TINY_BATCH else [f"trainer.batch_size={TINY_BATCH}"]
    words += [f"model.{key}={value}" for key, value in SMALLER.items() if fits(value, cfg.model.get(key))]
    if "size" in cfg.dataset:
        words.append("dataset.size=32")
    return [f"model={name}", *TINY, *words]


def fits(value: object, default: object) -> bool:
    """Return whether a model has the key of a value: one of that kind."""
    return default is not None and isinstance(value, list) == isinstance(default, ListConfig)


def technique(name: str, shape: tuple[int, int, int], *words: str) -> Any:
    """Return a technique for images of `shape`."""
    node = OmegaConf.to_container(composed(*words).model)
    assert isinstance(node, dict)
    settings = {str(key): value for key, value in node.items() if key not in ("name", "recipe")}
    cls = find_technique(name)
    config: Any = bind(cls.Config, settings, "model")
    return cls(config, DataSpec("made up", {"image": shape, "label": ()}, 100))
