"""Configurations of the measured runs, composed as on the command line."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from genexp.config import find_config_dir
from genexp.data import load_dataset


def compose_config(*overrides: str) -> dict[str, Any]:
    """Return the plain, resolved configuration for the overrides of a command line."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def load_training_stream(stream: str, *overrides: str) -> Tensor:
    """Return a stream of the training split as it is stored, for example images as uint8 (n, channels, h, w)."""
    tensor = load_dataset(compose_config(*overrides)["dataset"]).train.streams[stream]
    assert isinstance(tensor, Tensor)
    return tensor
