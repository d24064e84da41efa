"""The whole batch, of which a loss may be given a part: for what is no mean over samples.

The loss of a step is the mean of its parts' losses. What is a mean over the batch is therefore right by itself;
what is not (a statistic that a loss bends or a buffer keeps) is asked for here. Alone, a part is the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Which of how many equal parts is here; the others are with the other processes."""

    index: int = 0
    count: int = 1

    def row_slice(self, num_rows: int) -> slice:
        """Return which of `total` rows belong to this part."""
        return slice(self.index * num_rows // self.count, (self.index + 1) * num_rows // self.count)


SINGLE_SHARD = Shard()
_CURRENT_SHARD: ContextVar[Shard] = ContextVar("part", default=SINGLE_SHARD)


@contextmanager
def shard_context(shard: Shard) -> Iterator[None]:
    """Let the functions below know, while the block runs, that work is divided."""
    token = _CURRENT_SHARD.set(shard)
    try:
        yield
    finally:
        _CURRENT_SHARD.reset(token)


def current_shard() -> Shard:
    """Return the part that is here."""
    return _CURRENT_SHARD.get()


def batch_mean(values: Tensor) -> Tensor:
    """Return the mean of values (rows, ...) over the rows of the whole batch. Gradients pass through it."""
    mean = values.mean(0)
    return (
        mean
        if current_shard() == SINGLE_SHARD
        else torch.as_tensor(_AllReduceMean.apply(mean, current_shard().count))
    )


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of the whole batch, without a gradient."""
    if current_shard() == SINGLE_SHARD:
        return rows
    shards = [torch.empty_like(rows) for _ in range(current_shard().count)]
    dist.all_gather(shards, rows.detach().contiguous())
    return torch.cat(shards)


def local_rows(rows: Tensor) -> Tensor:
    """Return those of the whole batch's rows that are here."""
    return rows[current_shard().row_slice(len(rows))]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of the parts' tensors, in the place of the one given."""
    if current_shard() != SINGLE_SHARD:
        dist.all_reduce(tensor)
    return tensor


class _AllReduceMean(torch.autograd.Function):
    """The mean of the parts' tensors. Its gradient is the mean of theirs, and so on for higher ones."""

    @staticmethod
    def forward(ctx: Any, local_mean: Tensor, count: int) -> Tensor:
        ctx.count = count
        mean = local_mean.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(mean)
        return mean / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, None]:
        return _AllReduceMean.apply(gradient, ctx.count), None
