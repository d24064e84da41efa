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
class Part:
    """Which of how many equal parts is here; the others are with the other processes."""

    index: int = 0
    count: int = 1

    def rows(self, total: int) -> slice:
        """Return which of `total` rows belong to this part."""
        return slice(self.index * total // self.count, (self.index + 1) * total // self.count)


ALL = Part()
_PART: ContextVar[Part] = ContextVar("part", default=ALL)


@contextmanager
def divided(part: Part) -> Iterator[None]:
    """Let the functions below know, while the block runs, that work is divided."""
    token = _PART.set(part)
    try:
        yield
    finally:
        _PART.reset(token)


def here() -> Part:
    """Return the part that is here."""
    return _PART.get()


def batch_mean(values: Tensor) -> Tensor:
    """Return the mean of values (rows, ...) over the rows of the whole batch. Gradients pass through it."""
    mean = values.mean(0)
    return mean if here() == ALL else torch.as_tensor(_Mean.apply(mean, here().count))


def whole(rows: Tensor) -> Tensor:
    """Return the rows of the whole batch, without a gradient."""
    if here() == ALL:
        return rows
    parts = [torch.empty_like(rows) for _ in range(here().count)]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def own(rows: Tensor) -> Tensor:
    """Return those of the whole batch's rows that are here."""
    return rows[here().rows(len(rows))]


def total(tensor: Tensor) -> Tensor:
    """Return the sum of the parts' tensors, in the place of the one given."""
    if here() != ALL:
        dist.all_reduce(tensor)
    return tensor


class _Mean(torch.autograd.Function):
    """The mean of the parts' tensors. Its gradient is the mean of theirs, and so on for higher ones."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, count: int) -> Tensor:
        ctx.count = count
        mean = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(mean)
        return mean / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, None]:
        return _Mean.apply(gradient, ctx.count), None
