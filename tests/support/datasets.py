"""Data sets and their streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from genexp.config import find_config_dir
from genexp.data import bind_dataset, load_dataset
from genexp.data.dataset import Dataset, Split


def load_values(values: Mapping[str, Any]) -> Dataset:
    """Return the data set that the plain values of a configuration describe."""
    return load_dataset(bind_dataset(values))


def load_photographs(size: int = 48, **values: Any) -> Dataset:
    """Return the data set of photographs whose longer side has `size` pixels."""
    defaults = {"name": "photographs", "limit": None, "resident_gb": 4.0, "content": None, "style": None}
    return load_values({**defaults, "size": size, **values})


def load_dataset_config(name: str, **values: Any) -> dict[str, Any]:
    """Return conf/dataset/<name>.yaml with some values replaced."""
    config = OmegaConf.to_container(OmegaConf.load(find_config_dir() / "dataset" / f"{name}.yaml"))
    assert isinstance(config, dict)
    assert values.keys() <= config.keys()
    return {str(key): value for key, value in config.items()} | values


def get_stream(split: Split, name: str) -> Tensor:
    """Return a stream that is in memory."""
    tensor = split.streams[name]
    assert isinstance(tensor, Tensor)
    return tensor


def count_labels(split: Split) -> list[int]:
    """Return the number of samples of each class."""
    return torch.bincount(get_stream(split, "label")).tolist()
