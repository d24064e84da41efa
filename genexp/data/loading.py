"""A split within reach of the device: either all of it as tensors there, or fetched batch by batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from genexp.data.dataset import Split, Stream
from genexp.errors import DataError

Batch = dict[str, Tensor]
Indices = Mapping[str, Tensor]  # stream name → int64 (batch,)

# Torch wakes its other threads for 32,768 elements already. On cores that are shared with another process
# waiting for them takes up to a hundred times as long as doing it alone.
SINGLE_THREAD_MAX_ELEMENTS = 2**18
WORD_DTYPES = {8: torch.int64, 4: torch.int32, 2: torch.int16}
WORKER_KILLED_MESSAGE = (
    "a process that reads the data set was killed, perhaps for want of memory; set trainer.batch_size or "
    "dataset.size lower, or give the machine more, and resume"
)


class SplitLoader(ABC):
    """A split whose batches can be had on `device`: scaled, and the same whichever way they come."""

    index_device: torch.device  # where indices must be when a batch is fetched

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split, self.device = split, device

    def __len__(self) -> int:
        return len(self.split)

    @abstractmethod
    def fetch(self, indices: Iterable[Indices]) -> Generator[Batch, None, None]:
        """Yield the batch of each of `indices`, which may be endless. Raises DataError."""


def make_loader(
    split: Split, device: torch.device | str, resident_gb: float = 4.0, *, num_workers: int | None = None
) -> SplitLoader:
    """Bring `split` within reach of `device`: whole if its streams fit in `resident_gb` (10⁹ bytes).

    `workers` processes read the lazy streams of one that does not fit; None takes a few.
    """
    device = torch.device(device)
    in_memory = all(isinstance(stream, Tensor) for stream in split.streams.values())
    if in_memory and split_bytes(split) <= resident_gb * 1e9:
        return InMemoryLoader(split, device)
    # Nothing is decoded for tensors: a process of its own would only copy them.
    default_workers = 0 if in_memory else min(4, os.cpu_count() or 1)
    return StreamingLoader(split, device, num_workers=default_workers if num_workers is None else num_workers)


def split_bytes(split: Split) -> int:
    """Return the size of all streams together once read."""
    return sum(len(stream) * _sample_bytes(stream) for stream in split.streams.values())


class InMemoryLoader(SplitLoader):
    """Each stream is one tensor on the device; a batch is gathered there."""

    def __init__(self, split: Split, device: torch.device) -> None:
        super().__init__(split, device)
        self.index_device = device
        self._tensors = {
            name: stream.to(device).contiguous()
            for name, stream in split.streams.items()
            if isinstance(stream, Tensor)
        }
        assert len(self._tensors) == len(split.streams), "a lazy stream is not resident"
        self._words = {name: _view_as_words(tensor) for name, tensor in self._tensors.items()}

    def fetch(self, indices: Iterable[Indices]) -> Generator[Batch, None, None]:
        """Yield the batch of each of `indices`."""
        for batch_indices in indices:
            yield {name: convert_dtype(self._gather(name, batch_indices[name])) for name in self._words}

    def _gather(self, name: str, indices: Tensor) -> Tensor:
        tensor = self._tensors[name]
        words = self._words[name].index_select(0, indices)
        return words.view(tensor.dtype).view(len(indices), *tensor.shape[1:])


class StreamingLoader(SplitLoader):
    """Samples are read as they are needed, ahead of time, by worker processes."""

    index_device = torch.device("cpu")

    def __init__(self, split: Split, device: torch.device, *, num_workers: int) -> None:
        super().__init__(split, device)
        self.num_workers = num_workers

    def fetch(self, indices: Iterable[Indices]) -> Generator[Batch, None, None]:
        """Yield the batch of each of `indices`. Workers live as long as the generator. Raises DataError."""
        loader: DataLoader[Any] = DataLoader(
            _BatchDataset(self.split.streams),
            sampler=_IndexSampler(indices),
            batch_size=None,  # the sampler yields whole batches, without end: there is no gap between epochs
            num_workers=self.num_workers,
            collate_fn=_identity_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_interrupts,
            multiprocessing_context=_process_context() if self.num_workers else None,
            generator=torch.Generator(),  # else it draws from the generator that the steps are seeded by
        )
        try:
            for batch in loader:
                if isinstance(batch, DataError):
                    raise batch
                yield {
                    name: convert_dtype(tensor.to(self.device, non_blocking=True))
                    for name, tensor in batch.items()
                }
        except (EOFError, ConnectionError):  # it was killed while it handed a batch over
            raise DataError(WORKER_KILLED_MESSAGE) from None


def translate_worker_error(error: BaseException) -> BaseException:
    """Return `error`; but where torch says, wherever the program is, that a reading process is gone: DataError."""
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return DataError(WORKER_KILLED_MESSAGE)
    return error


def convert_dtype(tensor: Tensor) -> Tensor:
    """Return uint8 images in [0, 1], and points, in torch's default precision; anything else as it is."""
    precision = torch.get_default_dtype()
    if tensor.dtype != torch.uint8:
        return tensor.to(precision) if tensor.is_floating_point() else tensor
    if tensor.device.type == "cpu" and tensor.numel() <= SINGLE_THREAD_MAX_ELEMENTS and precision == torch.float32:
        return torch.from_numpy(np.divide(tensor.numpy(), np.float32(255), dtype=np.float32))
    return tensor / 255


def _view_as_words(tensor: Tensor) -> Tensor:
    """Return contiguous `tensor` as (samples, words): gathering bytes eight at a time is several times faster."""
    flat = tensor.view(len(tensor), -1)
    if tensor.dtype != torch.uint8:
        return flat
    size = next((size for size in WORD_DTYPES if flat.shape[1] % size == 0), None)
    aligned = size is not None and flat.storage_offset() % size == 0
    return flat.view(WORD_DTYPES[size]) if size is not None and aligned else flat


def _sample_bytes(stream: Stream) -> int:
    if isinstance(stream, Tensor):
        return stream[0].numel() * stream.element_size()
    return torch.Size(stream.shape).numel() * stream.dtype.itemsize


class _BatchDataset(Dataset[Any]):
    """Reads whole batches: {stream: indices} → {stream: (batch, ...)} of the streams' own types."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self.streams = dict(streams)

    def __getitem__(self, indices: Mapping[str, list[int]]) -> Batch | DataError:
        try:
            return {name: _read_samples(stream, indices[name]) for name, stream in self.streams.items()}
        except DataError as error:
            # Raised here, in a worker, it would arrive wrapped in a stack trace; a subclass may not pickle.
            return DataError(str(error))


class _IndexSampler(Sampler[dict[str, list[int]]]):
    """Indices as lists: tensors would each travel to a worker through a file descriptor."""

    def __init__(self, indices: Iterable[Indices]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        for batch_indices in self.indices:
            yield {name: row.tolist() for name, row in batch_indices.items()}


def _read_samples(stream: Stream, indices: list[int]) -> Tensor:
    if isinstance(stream, Tensor):
        return stream.index_select(0, torch.tensor(indices))
    return torch.stack([stream[index] for index in indices])


def _identity_collate(batch: Any) -> Any:
    return batch


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer: it may want one more batch


def _process_context() -> BaseContext:
    """Return how worker processes begin: not by fork(), which copies the locks of other threads, perhaps held."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not by each worker of each evaluation
    return context
