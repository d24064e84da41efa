"""Batches of a split: endless and shuffled for training, or one ordered pass for evaluation."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator, Sequence
from itertools import count
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from genexp.data.loading import Batch, BatchIndices, InMemoryLoader, SplitLoader, StreamingLoader
from genexp.data.sampling import interleave_classes, permutation
from genexp.errors import ConfigError
from genexp.images.transforms import Augmentation
from genexp.seeding import derive_seed
from genexp.sharding import SINGLE_SHARD, Shard


class TrainingBatches:
    """Endless batches of a training split. Batch n is a function of (seed, n) alone.

    Each epoch has its own random order. Its incomplete last batch is dropped, so that shapes are static. A
    `batch_size` of None means the whole split, in order, at every step. Only the rows of `shard` are returned of
    each batch. `augmentation` changes the images on the device; those of a pair are changed alike.
    An epoch has at most `max_epoch_steps` batches.
    `dataset_name` appears in error messages. Raises ConfigError if the batch is larger than the split, or if the
    whole split is requested from a StreamingLoader.
    """

    def __init__(
        self,
        loader: SplitLoader,
        batch_size: int | None,
        *,
        seed: int,
        dataset_name: str,
        shard: Shard = SINGLE_SHARD,
        augmentation: Augmentation | None = None,
        max_epoch_steps: int | None = None,
    ) -> None:
        assert batch_size is None or batch_size > 0
        assert (batch_size or len(loader)) % shard.count == 0, "parts are equal"
        if batch_size is not None and batch_size > len(loader):
            raise ConfigError(
                f"trainer.batch_size={batch_size}: exceeds the {len(loader)} training samples of "
                f"dataset={dataset_name}. Use a smaller value, or a larger data set."
            )
        if batch_size is None and isinstance(loader, StreamingLoader):
            raise ConfigError(
                f"trainer.batch_size=null: all {len(loader)} training samples of dataset={dataset_name} exceed "
                f"dataset.resident_gb. Use trainer.batch_size=64, or a larger dataset.resident_gb."
            )
        self._loader, self._batch_size, self._seed, self._shard = loader, batch_size, seed, shard
        self._augmentation, self._max_epoch_steps = augmentation, max_epoch_steps
        self._image_names = [
            name
            for name, stream in loader.split.streams.items()
            if stream.dtype == torch.uint8 and len(loader.split.sample_shapes[name]) == 3
        ]
        self._open_iterators: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()
        self._full_batch: Batch | None = None

    @property
    def steps_per_epoch(self) -> int:
        steps = 1 if self._batch_size is None else len(self._loader) // self._batch_size
        return steps if self._max_epoch_steps is None else min(steps, self._max_epoch_steps)

    @property
    def are_all_equal(self) -> bool:
        """True if each batch is the whole split, unchanged, whatever the seed."""
        return self._batch_size is None and self._augmentation is None

    def iter_batches(self, first_step: int) -> Iterator[Batch]:
        """Return an endless iterator over the batches of steps `first_step` (1-based), `first_step` + 1, …

        A batch is stream name → (batch, ...).
        """
        batches = self._iter_unchanged(first_step)
        if self._augmentation is None:
            return batches
        return (augment_batch(batch, [self], step) for step, batch in enumerate(batches, start=first_step))

    def _iter_unchanged(self, first_step: int) -> Iterator[Batch]:
        assert first_step >= 1
        if self._batch_size is None:
            return self._repeat_full_batch()
        iterator = self._loader.fetch(self._generate_indices(first_step, self._batch_size))
        self._open_iterators.add(iterator)
        return iterator

    def draw_augmentation(self, step: int) -> dict[str, Tensor]:
        """Return the random numbers (rows of the shard, numbers) that change the images of a step, by stream.

        They are drawn for the whole batch and on the CPU: they depend neither on the shard nor on the device.
        """
        assert self._augmentation is not None
        size = (self._batch_size or len(self._loader), self._augmentation.num_draws)

        def draw(*parts: str) -> Tensor:
            generator = torch.Generator().manual_seed(derive_seed("augment", self._seed, step, *parts))
            numbers = torch.rand(size, generator=generator, dtype=torch.float32)
            return numbers[self._shard.row_slice(size[0])]

        if self._loader.split.is_aligned:
            return dict.fromkeys(self._image_names, draw())
        return {name: draw(name) for name in self._image_names}

    def close(self) -> None:
        """Close all iterators that `iter_batches` returned, and their worker processes."""
        for iterator in list(self._open_iterators):
            iterator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repeat_full_batch(self) -> Iterator[Batch]:
        if self._full_batch is None:
            (batch,) = SplitBatches(self._loader, len(self._loader))
            self._full_batch = {name: rows[self._shard.row_slice(len(rows))] for name, rows in batch.items()}
        while True:
            yield self._full_batch

    def _generate_indices(self, first_step: int, batch_size: int) -> Iterator[BatchIndices]:
        steps = self.steps_per_epoch
        first_epoch, skipped = divmod(first_step - 1, steps)
        for epoch in count(first_epoch):
            batches_by_stream = {
                name: order.unbind() for name, order in self._draw_epoch_indices(epoch, steps, batch_size).items()
            }
            for step in range(skipped, steps):
                yield {name: batches[step] for name, batches in batches_by_stream.items()}
            skipped = 0

    def _draw_epoch_indices(self, epoch: int, steps: int, batch_size: int) -> dict[str, Tensor]:
        """Return the sample indices of an epoch for each stream, (steps, rows of the shard), on `index_device`.

        All indices of an epoch are moved there at once: fewer transfers.
        """
        split = self._loader.split

        def draw_order(samples: int, *parts: str) -> Tensor:
            order = permutation(samples, "order", self._seed, epoch, *parts)
            batches = order[: steps * batch_size].view(steps, batch_size)
            return batches[:, self._shard.row_slice(batch_size)].to(self._loader.index_device)

        if split.is_aligned:
            return dict.fromkeys(split.streams, draw_order(len(split)))
        return {name: draw_order(len(stream), name) for name, stream in split.streams.items()}


def augment_batch(batch: Batch, sources: Sequence[TrainingBatches], step: int) -> Batch:
    """Return the batches of all `sources` at `step` with their images changed, in the shapes of `batch`.

    `batch` has the batches of all sources one after the other: stream name → (sources * batch, ...).
    """
    augmentation = sources[0]._augmentation
    assert augmentation is not None
    draws = [source.draw_augmentation(step) for source in sources]
    changed = {}
    for name in draws[0]:
        numbers = torch.cat([each[name] for each in draws])
        # From page-locked memory, a copy to a GPU does not wait for the GPU.
        numbers = numbers.pin_memory() if batch[name].is_cuda else numbers
        changed[name] = augmentation.apply(batch[name], numbers.to(batch[name].device, non_blocking=True))
    return {**batch, **changed}


def stack_batches(sources: Sequence[TrainingBatches], first_step: int) -> Iterator[Batch]:
    """Return the batches of all `sources`, over one split, stacked along a new first axis: (sources, batch, ...).

    Batches that `are_all_equal` are the same for all and have no leading axis.
    """
    first = sources[0]
    if first.are_all_equal:
        return first.iter_batches(first_step)
    if first._batch_size is None:
        batches = zip(*(source.iter_batches(first_step) for source in sources), strict=True)
        return ({name: torch.stack([batch[name] for batch in each]) for name in each[0]} for each in batches)
    steps = zip(*(source._generate_indices(first_step, first._batch_size) for source in sources), strict=True)
    joint_indices = ({name: torch.cat([rows[name] for rows in step]) for name in step[0]} for step in steps)
    iterator = first._loader.fetch(joint_indices)
    first._open_iterators.add(iterator)
    return _unflatten_batches(iterator, sources, first_step)


def _unflatten_batches(
    batches: Iterator[Batch], sources: Sequence[TrainingBatches], first_step: int
) -> Iterator[Batch]:
    """Yield joined batches (sources * batch, ...) as (sources, batch, ...), with their images changed."""
    first = sources[0]
    for step, batch in enumerate(batches, start=first_step):
        changed = batch if first._augmentation is None else augment_batch(batch, sources, step)
        yield {name: part.unflatten(0, (len(sources), -1)) for name, part in changed.items()}


class SplitBatches:
    """Batches of a split in order; the last one may be smaller than `batch_size`. Can be iterated repeatedly.

    With `limit`, only the first `limit` samples are used. Batches may be views of the data set: they must not be
    changed in place.
    """

    def __init__(self, loader: SplitLoader, batch_size: int, *, limit: int | None = None) -> None:
        assert batch_size > 0
        self._loader, self._batch_size = loader, batch_size
        self._sample_count = len(loader) if limit is None else min(limit, len(loader))

    @property
    def are_views(self) -> bool:
        """True if batches take no memory of their own, however large they are."""
        return isinstance(self._loader, InMemoryLoader) and self._loader.can_keep_floats

    def resize(self, batch_size: int) -> SplitBatches:
        """Return the same samples in batches of another size."""
        return SplitBatches(self._loader, batch_size, limit=self._sample_count)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self._sample_count // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, self._sample_count, self._batch_size)
        return self._loader.fetch_slices(
            slice(start, min(start + self._batch_size, self._sample_count)) for start in starts
        )


def select_examples(loader: SplitLoader, count: int) -> Batch:
    """Return the first `count` samples as one batch, or all if there are fewer: stream name → (count, ...).

    If labels exist, the classes alternate.
    """
    split = loader.split
    labels = split.streams.get("label")
    is_labeled = split.is_aligned and isinstance(labels, Tensor)
    order = interleave_classes(labels) if is_labeled and isinstance(labels, Tensor) else torch.arange(len(split))
    (batch,) = loader.fetch([dict.fromkeys(split.streams, order[:count].to(loader.index_device))])
    return batch
