"""Registry of data sets: configuration classes with a method `load`, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, TypeVar

from genexp.config import bind, require, suggest_choice
from genexp.data.dataset import Dataset
from genexp.data.sampling import subset
from genexp.errors import ConfigError, DataError, PluginError
from genexp.images.transforms import Augmentation
from genexp.registry import Registry, check_defaults, find_caller


@dataclass
class DatasetConfig:
    """Keys that every conf/dataset/<name>.yaml has. Data sets add their own in a subclass."""

    name: str
    limit: int | None  # largest number of training samples; the test split shrinks in proportion
    resident_gb: float  # a split of at most this size, in 10⁹ bytes, is kept on the device

    def load(self) -> Dataset:
        """Return the data set, complete or with fewer samples than `limit`. Raises DataError and ConfigError."""
        raise NotImplementedError

    is_own_data: ClassVar[bool] = False  # data of the user: a batch may have fewer samples than the recipe says

    def select_splits(self, dataset: Dataset) -> Dataset:
        """Return the result of `load` with the splits that the settings choose."""
        return dataset

    def convert(self, dataset: Dataset) -> Dataset:
        """Return the data set, already reduced to `limit`, in the form that the settings describe."""
        return dataset

    @property
    def augmentation(self) -> Augmentation | None:
        """Random changes of the training images, or None if there are none."""
        return None

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, "limit", self.limit, "must be at least 1, or null for all")
        require(self.resident_gb >= 0, "resident_gb", self.resident_gb, "must be 0 or more")


DATASETS: Registry[type[DatasetConfig]] = Registry(
    "data set", key="dataset.name", group="genexp.datasets", source="genexp.data.sources"
)
ClassT = TypeVar("ClassT", bound=type)
# Values of keys that runs of earlier versions do not have.
ADDED_KEYS: Mapping[str, Any] = {"augment": {}, "size": None, "channels": None, "test_fraction": None}


def register_dataset(name: str) -> Callable[[ClassT], ClassT]:
    """Return a decorator that registers a dataclass with a method `load()` as dataset=`name`. Raises PluginError.

    A class that is not a DatasetConfig gets the keys of one. In this package, `name` is also the name of the
    module and of the YAML file.
    """
    DATASETS.check_name(name)

    def register(cls: ClassT) -> ClassT:
        if not (is_dataclass(cls) and callable(getattr(cls, "load", None))):
            remedy = "Write @dataclass below the decorator, and def load(self) -> genexp.Dataset in the class."
            raise PluginError(f"{find_caller()}: dataset={name}: not a dataclass with a method load. {remedy}")
        check_defaults(cls, cls, f"dataset={name}", [field.name for field in fields(DatasetConfig)])
        DATASETS.register(name, cls if issubclass(cls, DatasetConfig) else _add_common_keys(cls))
        return cls

    return register


def _add_common_keys(cls: type) -> type[DatasetConfig]:
    """Return a subclass of `cls` that is also a DatasetConfig."""

    def check(self: Any) -> None:
        DatasetConfig.__post_init__(self)
        getattr(cls, "__post_init__", lambda self: None)(self)

    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__post_init__": check,
        "is_own_data": True,
    }
    derived: type[DatasetConfig] = dataclass(type(cls.__name__, (cls, DatasetConfig), names))
    return derived


def list_datasets() -> list[str]:
    """Return the sorted names of all data sets. None is imported."""
    return DATASETS.list_names()


def find_dataset(name: str) -> type[DatasetConfig]:
    """Return the configuration class of a data set, importing only its own module. Raises ConfigError."""
    return DATASETS.find(name)


def bind_dataset(node: Mapping[str, Any], key_prefix: str = "dataset") -> DatasetConfig:
    """Return the `dataset` node of a configuration as an instance of the data set's configuration class.

    `key_prefix` is the prefix of keys in error messages. Raises ConfigError for a wrong name, key or value.
    """
    if "name" not in node:
        raise ConfigError(f"dataset.name: missing. {suggest_choice('', list_datasets())}")
    cls = find_dataset(node["name"])
    added = {key: value for key, value in ADDED_KEYS.items() if key in {field.name for field in fields(cls)}}
    return bind(cls, {**added, **node}, key_prefix)


def load_dataset(config: DatasetConfig) -> Dataset:
    """Return the data set of a configuration, reduced to its `limit`. Raises DataError and ConfigError."""
    dataset = config.load()
    if not isinstance(dataset, Dataset):
        raise DataError(f"dataset={config.name}: load() must return a genexp.Dataset. Use Dataset.from_arrays.")
    dataset = config.select_splits(replace(dataset, name=config.name))
    return config.convert(subset(dataset, config.limit))
