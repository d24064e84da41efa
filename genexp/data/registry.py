"""Registry of data sets: functions `load(config) -> Dataset` by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from genexp.config import bind, require, suggest_choice
from genexp.data.dataset import Dataset
from genexp.data.sampling import subset
from genexp.errors import ConfigError


@dataclass
class DatasetConfig:
    """Keys that every conf/dataset/<name>.yaml has. Data sets add their own in a subclass."""

    name: str
    limit: int | None  # largest number of training samples; the test split shrinks in proportion
    resident_gb: float  # a split of at most this size, in 10⁹ bytes, is kept on the device

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, "limit", self.limit, "use at least 1, or null for all")
        require(self.resident_gb >= 0, "resident_gb", self.resident_gb, "use 0 or more")


ConfigT = TypeVar("ConfigT", bound=DatasetConfig)


class DatasetEntry(NamedTuple):
    """Configuration class and `load` function of a registered data set."""

    config_class: type[DatasetConfig]
    load: Callable[[Any], Dataset]


_REGISTRY: dict[str, DatasetEntry] = {}


def register_dataset(
    name: str, config_class: type[ConfigT]
) -> Callable[[Callable[[ConfigT], Dataset]], Callable[[ConfigT], Dataset]]:
    """Return a decorator that registers `load(config)` as dataset=`name`.

    `name` is also the name of the Python file and of the YAML file.
    """

    def register(load: Callable[[ConfigT], Dataset]) -> Callable[[ConfigT], Dataset]:
        entry = _REGISTRY.setdefault(name, DatasetEntry(config_class, load))
        assert entry.load.__module__ == load.__module__, f"two sources are named {name}"
        return load

    return register


def list_datasets() -> list[str]:
    """Return the names of all data sets in genexp.data.sources, without importing them."""
    package = importlib.import_module("genexp.data.sources")
    return sorted(
        module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")
    )


def find_dataset(name: str) -> DatasetEntry:
    """Return the registry entry of `name`, importing only its own module. Raises ConfigError."""
    if name not in _REGISTRY:
        names = list_datasets()
        if name not in names:
            raise ConfigError(f"dataset.name={name} is no data set; {suggest_choice(str(name), names)}")
        importlib.import_module(f"genexp.data.sources.{name}")
    return _REGISTRY[name]


def bind_dataset(node: Mapping[str, Any], key_prefix: str = "dataset") -> DatasetConfig:
    """Return the `dataset` node of a configuration as an instance of the data set's configuration class.

    `key_prefix` is the prefix of keys in error messages. Raises ConfigError for a wrong name, key or value.
    """
    if "name" not in node:
        raise ConfigError(f"dataset.name is missing; {suggest_choice('', list_datasets())}")
    return bind(find_dataset(node["name"]).config_class, node, key_prefix)


def load_dataset(config: DatasetConfig) -> Dataset:
    """Return the data set of a configuration, reduced to its `limit`. Raises DataError and ConfigError."""
    return subset(find_dataset(config.name).load(config), config.limit)
