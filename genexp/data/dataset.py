"""Data sets as named streams of samples, split into train and test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from crc32c import crc32c
from torch import Tensor

from genexp.errors import ConfigError, DataError

CHECKSUM_SAMPLES = 2000  # largest number of evenly spaced samples of a stream in its checksum: takes 1 ms


class LazyStream(ABC):
    """Stream whose samples are read from disk one by one, for data that does not fit in memory."""

    sample_shape: tuple[int, ...]  # of one sample
    dtype: torch.dtype

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """Return sample `index` as a CPU tensor of `sample_shape` and `dtype`."""


Stream = Tensor | LazyStream


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Streams: "image" uint8 (samples, channels, height, width), "point" float32 (samples, features),
    "label" int64 (samples,); paired sets add their own names ("input", "target"; "a", "b").
    """

    streams: Mapping[str, Stream]
    is_aligned: bool = True  # samples i of all streams belong together; otherwise each stream has its own order

    def __len__(self) -> int:
        """Return the number of samples in an epoch, which is the length of the shortest stream."""
        return min(len(stream) for stream in self.streams.values())


@dataclass(frozen=True)
class DataSpec:
    """Shapes, size and class names of a data set, from which a technique is built."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]  # of one sample of each stream
    train_size: int  # samples
    class_names: tuple[str, ...] = ()

    def get_shape(self, stream: str) -> tuple[int, ...]:
        """Return the shape of one sample of `stream`. Raises ConfigError if the data set has no such stream."""
        if stream not in self.shapes:
            raise ConfigError(
                f"dataset={self.name} has no {stream} stream (it has: {', '.join(self.shapes)}); "
                f"choose a data set that has, or another model"
            )
        return self.shapes[stream]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width). Raises ConfigError if the data set has no images."""
        channels, height, width = self.get_shape("image")
        return channels, height, width


@dataclass(frozen=True)
class Dataset:
    """A loaded data set. Raises DataError if a split is empty."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # logged when a run is built, for example unreadable files

    def __post_init__(self) -> None:
        for split_name, split in (("train", self.train), ("test", self.test)):
            if not len(split):
                raise DataError(f"dataset={self.name} has an empty {split_name} split; raise dataset.limit")

    @cached_property
    def spec(self) -> DataSpec:
        streams = self.train.streams
        shapes = {
            name: tuple(stream.shape[1:]) if isinstance(stream, Tensor) else stream.sample_shape
            for name, stream in streams.items()
        }
        return DataSpec(self.name, shapes, len(self.train), self.class_names)


def fingerprint(dataset: Dataset) -> dict[str, str]:
    """Return the size and the CRC-32C checksum of each split, by split name.

    A split with a lazy stream has no checksum.
    """
    return {"train": _describe_split(dataset.train), "test": _describe_split(dataset.test)}


def _describe_split(split: Split) -> str:
    checksum, is_in_memory = 0, True
    for name in sorted(split.streams):
        stream = split.streams[name]
        if isinstance(stream, Tensor):
            checksum = crc32c(_read_evenly_spaced(stream), checksum)
        else:
            is_in_memory = False
    size = f"{len(split):,} samples"
    return f"{size}, checksum {checksum:08x}" if is_in_memory else size


def _read_evenly_spaced(stream: Tensor) -> bytes:
    stride = -(-len(stream) // CHECKSUM_SAMPLES)
    return stream[::stride].contiguous().view(torch.uint8).cpu().numpy().tobytes()
