"""Data sets as named streams of samples, split into train and test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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

    @property
    def sample_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample of each stream."""
        return {
            name: tuple(stream.shape[1:]) if isinstance(stream, Tensor) else stream.sample_shape
            for name, stream in self.streams.items()
        }


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
                f"dataset={self.name}: has no {stream} stream (only {', '.join(self.shapes)}). "
                f"Use another data set, or another model."
            )
        return self.shapes[stream]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image, or (1, 1, features) of a point. Raises ConfigError for a data set without both."""
        return (1, 1, *self.shapes["point"]) if self.is_table else self.image_shape  # type: ignore[return-value]

    @property
    def is_table(self) -> bool:
        """Whether samples are points, whose features are any numbers."""
        return "point" in self.shapes and "image" not in self.shapes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width). Raises ConfigError if the data set has no images."""
        channels, height, width = self.get_shape("image")
        return channels, height, width


@dataclass(frozen=True)
class PointColumns:
    """Names of the features of points, and the scaling from the units of the user's file."""

    names: tuple[str, ...]
    offset: Tensor  # (features,), subtracted from the values of the file
    scale: Tensor  # (features,), by which the differences are divided

    def restore(self, points: Tensor) -> Tensor:
        """Return points (samples, features) of the data set in the units of the file, as float64."""
        return points.double().cpu() * self.scale + self.offset


@dataclass(frozen=True)
class Dataset:
    """A loaded data set. Raises DataError if a split or a sample is empty, or the splits have unequal shapes."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # logged when a run is built, for example unreadable files
    columns: PointColumns | None = None  # of the stream "point"; None: the names are 0, 1, …

    def __post_init__(self) -> None:
        for split_name, split in (("train", self.train), ("test", self.test)):
            if not len(split):
                raise DataError(
                    f"dataset={self.name}: the {split_name} split is empty. Use a larger dataset.limit."
                )
        for stream, shape in self.train.sample_shapes.items():
            test_shape = self.test.sample_shapes.get(stream)
            if test_shape != shape or 0 in shape:
                raise DataError(
                    f"dataset={self.name}: samples of {_format_shape(shape)} for training and "
                    f"{_format_shape(test_shape)} for the test ({stream}). Use files of one size above 0."
                )

    @classmethod
    def from_arrays(
        cls,
        train: Mapping[str, Any],
        test: Mapping[str, Any],
        *,
        class_names: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ) -> Dataset:
        """Return a data set of arrays, tensors or lists: stream name → (samples, ...).

        "image" takes uint8 or floats in [0, 1], (samples, height, width) or (samples, channels, height, width).
        "label" takes integers. Other streams become float32, for example "point" (samples, features).
        Raises DataError.
        """
        train_split, test_split = Split(_make_streams("train", train)), Split(_make_streams("test", test))
        return cls("arrays", train_split, test_split, tuple(class_names), tuple(warnings))

    @property
    def point_columns(self) -> PointColumns:
        """Columns of the stream "point". Raises ConfigError for a data set without points."""
        (features,) = self.spec.get_shape("point")
        names = tuple(str(index) for index in range(features))
        return self.columns or PointColumns(names, torch.zeros(features), torch.ones(features))

    @cached_property
    def spec(self) -> DataSpec:
        return DataSpec(self.name, self.train.sample_shapes, len(self.train), self.class_names)


def _format_shape(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape)) if shape else "nothing"


def _make_streams(split_name: str, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return arrays as streams of equal length. Raises DataError."""
    if not isinstance(arrays, Mapping):
        raise DataError(f"{split_name}={arrays!r:.60}: must be a mapping of arrays. Use {{'image': images}}.")
    streams = {}
    for name, values in arrays.items():
        try:
            streams[name] = _make_stream(name, torch.as_tensor(values))
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"the array {name} of the {split_name} split: {reason}. Check it.") from None
    lengths = {name: len(stream) for name, stream in streams.items()}
    if len(set(lengths.values())) != 1:
        sizes = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "none"
        raise DataError(
            f"the arrays of the {split_name} split must have the same length ({sizes}). Check the arrays."
        )
    return streams


def _make_stream(name: str, values: Tensor) -> Tensor:
    """Return values as a stream called `name`. Raises ValueError."""
    if name == "label":
        if values.dim() != 1 or values.is_floating_point():
            raise ValueError("must be integers, one per sample")
        return values.long()
    if name != "image":
        if not bool(values.float().isfinite().all()):
            raise ValueError("must be finite")
        return values.float()
    if values.dim() not in (3, 4):
        raise ValueError("must be (samples, height, width) or (samples, channels, height, width)")
    if values.dtype != torch.uint8:
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError("must be uint8, or numbers in [0, 1]")
        values = (values * 255).round().to(torch.uint8)
    return values[:, None] if values.dim() == 3 else values


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
