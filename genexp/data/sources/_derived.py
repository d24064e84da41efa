"""Data sets derived from the images of another data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from genexp.config import find_config_dir, require, suggest_choice
from genexp.data.dataset import Dataset, LazyStream, Stream
from genexp.data.registry import DatasetConfig, bind_dataset, list_datasets, load_dataset
from genexp.data.sources._images import AugmentedConfig
from genexp.errors import ConfigError

BLOCK_IMAGES = 1000  # images transformed at a time
# uint8 images (batch, ...) → (batch, ...). A module-level function: worker processes unpickle it.
Transform = Callable[[Tensor], Tensor]


@dataclass
class DerivedConfig(AugmentedConfig):
    """Keys of all data sets that are derived from another data set's images."""

    source: str  # name of the other data set
    options: dict[str, Any]  # overrides of keys in conf/dataset/<source>.yaml

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must not be there: use dataset.augment"
        require("augment" not in self.options, "options.augment", self.options.get("augment"), rule)
        self.source_config = self._bind_source()

    def load_source(self, limit: int | None) -> Dataset:
        """Return the data set `source` with at most `limit` training samples. Raises ConfigError, DataError.

        `limit` in `options` takes precedence.
        """
        limit = self.options.get("limit", limit)
        dataset = load_dataset(replace(self.source_config, limit=limit))
        if "image" not in dataset.train.streams:
            raise ConfigError(
                f"dataset.source={self.source}: has no images. Use mnist_5k, or another data set with images."
            )
        return dataset

    def _bind_source(self) -> DatasetConfig:
        names = list_datasets()
        file = find_config_dir() / "dataset" / f"{self.source}.yaml"
        if self.source not in names or not file.is_file():
            raise ConfigError(
                f"dataset.source={self.source}: unknown data set. {suggest_choice(self.source, names)}"
            )
        defaults = {str(key): value for key, value in OmegaConf.load(file).items()}
        values = {**defaults, "resident_gb": self.resident_gb, **self.options}
        return bind_dataset(values, key_prefix="dataset.options")


class TransformedStream(LazyStream):
    """The samples of another lazy stream, transformed when they are read."""

    def __init__(self, stream: LazyStream, transform: Transform) -> None:
        sample = transform(torch.zeros(1, *stream.sample_shape, dtype=stream.dtype))[0]
        self.stream, self.transform = stream, transform
        self.sample_shape, self.dtype = tuple(sample.shape), sample.dtype

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.stream[index][None])[0]


def transform_stream(stream: Stream, transform: Transform) -> Stream:
    """Return the transformed stream: lazy for a lazy stream, computed at once for a tensor."""
    if isinstance(stream, LazyStream):
        return TransformedStream(stream, transform)
    return torch.cat([transform(block) for block in stream.split(BLOCK_IMAGES)])
