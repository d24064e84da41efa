"""Batches: endless and shuffled to learn from, or a whole split in order to be judged by."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator, Sequence
from itertools import count
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from genexp.data.loading import Batch, HeldSplit, Indices, StreamedSplit
from genexp.data.sampling import round_robin, shuffled
from genexp.errors import ConfigError
from genexp.sharding import ALL, Part


class BatchStream:
    """The batches of a training split. Batch n is a function of (seed, n) alone.

    Each epoch has an order of its own, and its incomplete last batch is dropped: shapes are static. A
    `batch_size` of None means the whole split, in order, at every step. Of each batch the rows of `part` are
    given. Raises ConfigError for a batch that `held` cannot fill; `name` is the data set's, for that message.
    """

    def __init__(self, held: HeldSplit, batch_size: int | None, *, seed: int, name: str, part: Part = ALL) -> None:
        assert batch_size is None or batch_size > 0
        assert (batch_size or len(held)) % part.count == 0, "parts are equal"
        if batch_size is not None and batch_size > len(held):
            raise ConfigError(
                f"trainer.batch_size={batch_size} exceeds the {len(held)} training samples of dataset={name}; "
                f"lower it or choose a larger data set"
            )
        if batch_size is None and isinstance(held, StreamedSplit):
            raise ConfigError(
                f"trainer.batch_size=null takes all {len(held)} training samples of dataset={name} at once, "
                f"which exceed dataset.resident_gb; set trainer.batch_size=64 or raise dataset.resident_gb"
            )
        self._held, self._batch_size, self._seed, self._part = held, batch_size, seed, part
        self._open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()
        self._whole: Batch | None = None

    @property
    def steps_per_epoch(self) -> int:
        return 1 if self._batch_size is None else len(self._held) // self._batch_size

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Return the batches of steps `first_step` (1-based), `first_step` + 1, … without end."""
        assert first_step >= 1
        if self._batch_size is None:
            return self._same_batch()
        fetched = self._held.fetch(self._indices(first_step, self._batch_size))
        self._open.add(fetched)
        return fetched

    def close(self) -> None:
        """End every iterator handed out, and the worker processes behind it."""
        for fetched in list(self._open):
            fetched.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _same_batch(self) -> Iterator[Batch]:
        if self._whole is None:
            (batch,) = SplitBatches(self._held, len(self._held))
            self._whole = {name: rows[self._part.rows(len(rows))] for name, rows in batch.items()}
        while True:
            yield self._whole

    def _indices(self, first_step: int, batch_size: int) -> Iterator[Indices]:
        steps = self.steps_per_epoch
        first_epoch, skipped = divmod(first_step - 1, steps)
        for epoch in count(first_epoch):
            rows = {name: order.unbind() for name, order in self._epoch_rows(epoch, steps, batch_size).items()}
            for step in range(skipped, steps):
                yield {name: row[step] for name, row in rows.items()}
            skipped = 0

    def _epoch_rows(self, epoch: int, steps: int, batch_size: int) -> dict[str, Tensor]:
        """Return the order of each stream as (steps, batch), moved to the device once an epoch."""
        split = self._held.split

        def rows(samples: int, *parts: str) -> Tensor:
            order = shuffled(samples, "order", self._seed, epoch, *parts)
            batches = order[: steps * batch_size].view(steps, batch_size)
            return batches[:, self._part.rows(batch_size)].to(self._held.index_device)

        if split.aligned:
            return dict.fromkeys(split.streams, rows(len(split)))
        return {name: rows(len(stream), name) for name, stream in split.streams.items()}


def side_by_side(streams: Sequence[BatchStream], first_step: int) -> Iterator[Batch]:
    """Return the batches of several streams over one split, gathered together: each is (streams, batch, ...).

    Where a batch is the whole split it is the same for all, and has no axis of streams.
    """
    first = streams[0]
    if first._batch_size is None:
        return first.batches(first_step)
    each = zip(*(stream._indices(first_step, first._batch_size) for stream in streams), strict=True)
    joined = ({name: torch.cat([rows[name] for rows in step]) for name in step[0]} for step in each)
    fetched = first._held.fetch(joined)
    first._open.add(fetched)
    return ({name: part.unflatten(0, (len(streams), -1)) for name, part in batch.items()} for batch in fetched)


class SplitBatches:
    """A split in order, in batches of at most `batch_size`, the last one perhaps smaller. Can be iterated again.

    `limit` takes the first so many samples only.
    """

    def __init__(self, held: HeldSplit, batch_size: int, *, limit: int | None = None) -> None:
        assert batch_size > 0
        self._held, self._batch_size = held, batch_size
        self._count = len(held) if limit is None else min(limit, len(held))

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self._count // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(self._count, device=self._held.index_device)
        names = self._held.split.streams
        return self._held.fetch(dict.fromkeys(names, rows) for rows in order.split(self._batch_size))


def examples(held: HeldSplit, count: int) -> Batch:
    """Return `count` samples to look at (fewer if there are fewer), the classes in turn where there are labels."""
    split = held.split
    labels = split.streams.get("label")
    spread = split.aligned and isinstance(labels, Tensor)
    order = round_robin(labels) if spread and isinstance(labels, Tensor) else torch.arange(len(split))
    (batch,) = held.fetch([dict.fromkeys(split.streams, order[:count].to(held.index_device))])
    return batch
