"""Optimizer settings of the YAML files."""

from __future__ import annotations

from functools import cache
from typing import Any

from omegaconf import OmegaConf

from tests.support.compose import compose_config

# Learning rates for toy problems; those of the files suit networks.
LEARNING_RATES = {"adam": 0.1, "adamw": 0.1, "sgd": 0.02, "rmsprop": 0.05, "adadelta": 100.0, "lbfgs": 1.0}


@cache
def load_optimizer_settings(name: str) -> dict[str, Any]:
    """Return the settings of conf/optimizer/<name>.yaml."""
    node = OmegaConf.to_container(compose_config(f"optimizer={name}"), resolve=True)
    assert isinstance(node, dict)
    return dict(node["optimizer"])
