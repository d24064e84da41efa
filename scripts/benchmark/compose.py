"""Configurations of the measured runs, composed as on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from torch import Tensor

from genexp.config import find_config_dir, to_plain_config
from genexp.data import bind_dataset, load_dataset
from genexp.data.dataset import Dataset


def compose_config(*overrides: str) -> dict[str, Any]:
    """Return the plain, resolved configuration for the overrides of a command line."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        return to_plain_config(compose("train", overrides=list(overrides)))


def load_composed_dataset(config: Mapping[str, Any]) -> Dataset:
    """Return the data set of a composed configuration. Raises DataError and ConfigError."""
    return load_dataset(bind_dataset(config["dataset"]))


def load_training_stream(stream: str, *overrides: str) -> Tensor:
    """Return a stream of the training split as it is stored, for example images as uint8 (n, channels, h, w)."""
    tensor = load_composed_dataset(compose_config(*overrides)).train.streams[stream]
    assert isinstance(tensor, Tensor)
    return tensor
