"""Loaders of a split: whole on the device as tensors, or read batch by batch in worker processes."""

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
from genexp.registry import list_plugin_sources, load_plugins, set_plugins

Batch = dict[str, Tensor]
BatchIndices = Mapping[str, Tensor]  # stream name → int64 (batch,)

# torch uses several threads from 32,768 elements on. On cores that are shared with another process, waiting for
# these threads takes up to a hundred times as long as computing in one thread.
SINGLE_THREAD_MAX_ELEMENTS = 2**18
CONVERSION_ROWS = 1000  # samples that are converted at a time: they fit in the cache of a CPU
WORD_DTYPES = {8: torch.int64, 4: torch.int32, 2: torch.int16}  # bytes → dtype
WORKER_KILLED_MESSAGE = (
    "a process that reads the data set was killed, possibly for lack of memory. "
    "Use a smaller trainer.batch_size or dataset.size, and resume."
)


class SplitLoader(ABC):
    """Source of a split's batches on `device`. All subclasses yield the same batches, with images in [0, 1]."""

    index_device: torch.device  # device of the indices that `fetch` takes

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split, self.device = split, device

    def __len__(self) -> int:
        return len(self.split)

    @abstractmethod
    def fetch(self, batch_indices: Iterable[BatchIndices]) -> Generator[Batch, None, None]:
        """Yield one batch for each element of `batch_indices`, which may be endless: stream name → (batch, ...).

        Raises DataError.
        """

    def fetch_slices(self, slices: Iterable[slice]) -> Generator[Batch, None, None]:
        """Yield the batch of each slice of the split: stream name → (batch, ...). Raises DataError."""
        return self.fetch(
            dict.fromkeys(self.split.streams, torch.arange(part.start, part.stop, device=self.index_device))
            for part in slices
        )


def make_loader(
    split: Split, device: torch.device | str, resident_gb: float = 4.0, *, num_workers: int | None = None
) -> SplitLoader:
    """Return an InMemoryLoader if all streams are tensors and fit in `resident_gb`, else a StreamingLoader.

    `resident_gb` is in 10⁹ bytes. `num_workers` processes read the streams of a StreamingLoader. None means up to
    4 for lazy streams and 0 for tensors.
    """
    device = torch.device(device)
    is_in_memory = all(isinstance(stream, Tensor) for stream in split.streams.values())
    if is_in_memory and count_split_bytes(split) <= resident_gb * 1e9:
        return InMemoryLoader(split, device, resident_gb)
    # Tensors need no decoding: a worker process would only copy them.
    default_workers = 0 if is_in_memory else min(4, os.cpu_count() or 1)
    return StreamingLoader(split, device, num_workers=default_workers if num_workers is None else num_workers)


def count_split_bytes(split: Split) -> int:
    """Return the size in bytes of all streams together in memory."""
    return sum(len(stream) * _count_sample_bytes(stream) for stream in split.streams.values())


class InMemoryLoader(SplitLoader):
    """Loader that keeps each stream as one tensor on the device and gathers batches there.

    Images that are read in order are also kept as floats, from the first pass on, if both fit in `resident_gb`
    (10⁹ bytes). Scaling them in each pass takes twice as long as an iteration of k-means.
    """

    def __init__(self, split: Split, device: torch.device, resident_gb: float = 4.0) -> None:
        super().__init__(split, device)
        self.index_device = device
        self._tensors = {
            name: stream.to(device).contiguous()
            for name, stream in split.streams.items()
            if isinstance(stream, Tensor)
        }
        assert len(self._tensors) == len(split.streams), "a lazy stream is not resident"
        self._floats: dict[str, Tensor] = {}
        images = [tensor for tensor in self._tensors.values() if tensor.dtype == torch.uint8]
        float_bytes = sum(tensor.numel() for tensor in images) * torch.get_default_dtype().itemsize
        self.can_keep_floats = count_split_bytes(split) + float_bytes <= resident_gb * 1e9
        self._words = {name: _view_as_words(tensor) for name, tensor in self._tensors.items()}

    def fetch(self, batch_indices: Iterable[BatchIndices]) -> Generator[Batch, None, None]:
        """Yield one batch for each element of `batch_indices`."""
        for indices in batch_indices:
            yield {name: convert_and_scale(self._gather(name, indices[name])) for name in self._words}

    def fetch_slices(self, slices: Iterable[slice]) -> Generator[Batch, None, None]:
        """Yield the batch of each slice of the split: views of the kept tensors, if these fit in memory."""
        if not self.can_keep_floats:
            yield from super().fetch_slices(slices)
            return
        for part in slices:
            yield {name: self._keep_floats(name)[part] for name in self._tensors}

    def _keep_floats(self, name: str) -> Tensor:
        tensor, dtype = self._tensors[name], torch.get_default_dtype()
        if tensor.dtype != torch.uint8:
            return convert_and_scale(tensor)
        if name not in self._floats or self._floats[name].dtype != dtype:
            # NumPy allocates large pages of memory, which takes a fraction of the time.
            floats = torch.from_numpy(np.empty(tensor.shape, str(dtype).removeprefix("torch."))).to(tensor.device)
            for values, scaled in zip(tensor.split(CONVERSION_ROWS), floats.split(CONVERSION_ROWS), strict=True):
                scaled.copy_(values).div_(255)
            self._floats[name] = floats
        return self._floats[name]

    def _gather(self, name: str, indices: Tensor) -> Tensor:
        tensor = self._tensors[name]
        words = self._words[name].index_select(0, indices)
        return words.view(tensor.dtype).view(len(indices), *tensor.shape[1:])


class StreamingLoader(SplitLoader):
    """Loader whose worker processes read samples ahead of their use."""

    index_device = torch.device("cpu")

    def __init__(self, split: Split, device: torch.device, *, num_workers: int) -> None:
        super().__init__(split, device)
        self.num_workers = num_workers

    def fetch(self, batch_indices: Iterable[BatchIndices]) -> Generator[Batch, None, None]:
        """Yield one batch per element of `batch_indices`. Workers end with the generator. Raises DataError."""
        loader: DataLoader[Any] = DataLoader(
            _BatchDataset(self.split.streams),
            sampler=_IndexSampler(batch_indices),
            batch_size=None,  # the sampler yields whole batches without end: workers read ahead across epochs
            num_workers=self.num_workers,
            collate_fn=_identity_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_interrupts,
            multiprocessing_context=_get_multiprocessing_context() if self.num_workers else None,
            generator=torch.Generator(),  # the default is the global generator, whose state the steps depend on
        )
        try:
            for batch in loader:
                if isinstance(batch, DataError):
                    raise batch
                yield {
                    name: convert_and_scale(tensor.to(self.device, non_blocking=True))
                    for name, tensor in batch.items()
                }
        except (EOFError, ConnectionError):  # a worker was killed while it sent a batch
            raise DataError(WORKER_KILLED_MESSAGE) from None


def translate_worker_error(error: BaseException) -> BaseException:
    """Return a DataError if `error` is torch's report of a dead DataLoader worker, else `error` itself.

    torch raises that report from a signal handler, at any point of the program.
    """
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return DataError(WORKER_KILLED_MESSAGE)
    return error


def convert_and_scale(tensor: Tensor) -> Tensor:
    """Return a tensor of any shape as floats: uint8 scaled to [0, 1], floats unscaled; other dtypes unchanged."""
    precision = torch.get_default_dtype()
    if tensor.dtype != torch.uint8:
        return tensor.to(precision) if tensor.is_floating_point() else tensor
    if tensor.device.type == "cpu" and tensor.numel() <= SINGLE_THREAD_MAX_ELEMENTS and precision == torch.float32:
        return torch.from_numpy(np.divide(tensor.numpy(), np.float32(255), dtype=np.float32))
    return tensor / 255


def _view_as_words(tensor: Tensor) -> Tensor:
    """Return a view (samples, words) of contiguous `tensor` with the widest dtype that fits.

    Gathering eight bytes at a time is several times faster than gathering single bytes.
    """
    flat = tensor.view(len(tensor), -1)
    if tensor.dtype != torch.uint8:
        return flat
    size = next((size for size in WORD_DTYPES if flat.shape[1] % size == 0), None)
    is_aligned = size is not None and flat.storage_offset() % size == 0
    return flat.view(WORD_DTYPES[size]) if size is not None and is_aligned else flat


def _count_sample_bytes(stream: Stream) -> int:
    if isinstance(stream, Tensor):
        return stream[0].numel() * stream.element_size()
    return torch.Size(stream.sample_shape).numel() * stream.dtype.itemsize


class _PluginImport:
    """Marker that imports the plugins in use when it is unpickled, for the classes of their streams."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _import_plugins, (list_plugin_sources(),)


def _import_plugins(sources: list[str]) -> None:
    set_plugins(sources)
    load_plugins()


class _BatchDataset(Dataset[Any]):
    """Dataset whose index is a batch: {stream: indices} → {stream: (batch, ...)} in the streams' own dtypes."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self.plugin_import = _PluginImport()  # before the streams, as it is unpickled first
        self.streams = dict(streams)

    def __getitem__(self, indices: Mapping[str, list[int]]) -> Batch | DataError:
        try:
            return {name: _read_samples(stream, indices[name]) for name, stream in self.streams.items()}
        except DataError as error:
            # An error raised in a worker arrives wrapped in a stack trace, and a subclass may not pickle.
            return DataError(str(error))


class _IndexSampler(Sampler[dict[str, list[int]]]):
    """Sampler that yields indices as lists: each tensor would use a file descriptor on its way to a worker."""

    def __init__(self, indices: Iterable[BatchIndices]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        for batch_indices in self.indices:
            yield {name: stream_indices.tolist() for name, stream_indices in batch_indices.items()}


def _read_samples(stream: Stream, indices: list[int]) -> Tensor:
    if isinstance(stream, Tensor):
        return stream.index_select(0, torch.tensor(indices))
    return torch.stack([stream[index] for index in indices])


def _identity_collate(batch: Any) -> Any:
    return batch


def _ignore_interrupts(worker_id: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and may need one more batch


def _get_multiprocessing_context() -> BaseContext:
    """Return the multiprocessing context of worker processes: forkserver, or spawn if that is unavailable.

    fork() is unsafe here: it copies the locks of other threads, which may be held.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports torch once, not in each worker of each evaluation
    return context
