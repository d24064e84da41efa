"""Statistics of the whole batch, for losses that receive only this process's shard of it.

The loss of a step is the mean of the shards' losses, so a mean of per-sample losses needs no function of this
module. A statistic needs one if a loss is nonlinear in it, or if a buffer stores it. With a single process the
shard is the whole batch.
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
    """One of `count` equal parts of the batch. Each process has one."""

    index: int = 0  # 0-based, below `count`
    count: int = 1

    def row_slice(self, num_rows: int) -> slice:
        """Return the slice of `num_rows` rows that belongs to this shard."""
        return slice(self.index * num_rows // self.count, (self.index + 1) * num_rows // self.count)


SINGLE_SHARD = Shard()
_CURRENT_SHARD: ContextVar[Shard] = ContextVar("shard", default=SINGLE_SHARD)


@contextmanager
def shard_context(shard: Shard) -> Iterator[None]:
    """Make `shard` the current shard of the functions below, within the block."""
    token = _CURRENT_SHARD.set(shard)
    try:
        yield
    finally:
        _CURRENT_SHARD.reset(token)


def current_shard() -> Shard:
    """Return the shard of this process; the only one outside `shard_context`."""
    return _CURRENT_SHARD.get()


def batch_mean(values: Tensor) -> Tensor:
    """Return the mean (...) of `values` (rows, ...) over the rows of the whole batch. It is differentiable."""
    mean = values.mean(0)
    return (
        mean
        if current_shard() == SINGLE_SHARD
        else torch.as_tensor(_AllReduceMean.apply(mean, current_shard().count))
    )


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of the whole batch, (count * rows, ...), from local (rows, ...). It is differentiable."""
    return rows if current_shard() == SINGLE_SHARD else torch.as_tensor(_GatherRows.apply(rows, current_shard()))


def local_rows(rows: Tensor) -> Tensor:
    """Return the local rows, (rows / count, ...), of the whole batch's `rows` (rows, ...)."""
    return rows[current_shard().row_slice(len(rows))]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum `tensor` (of any shape, the same in all shards) over all shards in place, and return it."""
    if current_shard() != SINGLE_SHARD:
        dist.all_reduce(tensor)
    return tensor


class _AllReduceMean(torch.autograd.Function):
    """Differentiable mean over all shards. Its gradient, of any order, is the mean of the shards' gradients."""

    @staticmethod
    def forward(ctx: Any, local_mean: Tensor, count: int) -> Tensor:
        ctx.count = count
        mean = local_mean.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(mean)
        return mean / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, None]:
        return _AllReduceMean.apply(gradient, ctx.count), None


class _GatherRows(torch.autograd.Function):
    """Differentiable concatenation of all shards. Its gradient is the sum of the shards' gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        shards = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(shard.count)]
        dist.all_gather(shards, rows.contiguous())
        return torch.cat(shards)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.shard.row_slice(len(total))], None
