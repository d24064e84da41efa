"""Data sets made from the images of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from genexp.config import find_config_dir, suggest_choice
from genexp.data.dataset import Dataset, LazyStream, Stream
from genexp.data.registry import DatasetConfig, list_datasets, load_dataset
from genexp.errors import ConfigError

BLOCK_IMAGES = 1000  # images changed at a time
Transform = Callable[
    [Tensor], Tensor
]  # uint8 images (batch, ...) → (batch, ...); known to worker processes by name


@dataclass
class DerivedConfig(DatasetConfig):
    """Keys of all data sets that are made from another's images."""

    source: str
    options: dict[str, Any]  # of conf/dataset/<source>.yaml

    def load_source(self, limit: int | None) -> Dataset:
        """Return the data set `source` with at most `limit` training samples. Raises ConfigError, DataError."""
        names = list_datasets()
        file = find_config_dir() / "dataset" / f"{self.source}.yaml"
        if self.source not in names or not file.is_file():
            raise ConfigError(f"dataset.source={self.source} is no data set; {suggest_choice(self.source, names)}")
        shared = {"limit": limit, "resident_gb": self.resident_gb}
        node = {str(key): value for key, value in OmegaConf.load(file).items()}
        dataset = load_dataset({**node, **shared, **self.options}, group="dataset.options")
        if "image" not in dataset.train.streams:
            raise ConfigError(f"dataset.source={self.source} has no images; choose mnist_5k or another that has")
        return dataset


class TransformedStream(LazyStream):
    """Another lazy stream's samples, changed as they are read."""

    def __init__(self, stream: LazyStream, change: Transform) -> None:
        sample = change(torch.zeros(1, *stream.shape, dtype=stream.dtype))[0]
        self.stream, self.transform = stream, change
        self.shape, self.dtype = tuple(sample.shape), sample.dtype

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.stream[index][None])[0]


def transform_stream(stream: Stream, transform: Transform) -> Stream:
    """Return the stream of changed samples: computed at once where the samples are in memory."""
    if isinstance(stream, LazyStream):
        return TransformedStream(stream, transform)
    return torch.cat([transform(block) for block in stream.split(BLOCK_IMAGES)])
