"""Points in blocks: what one pass over them can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.technique import Batches

FEATURES = 2**20  # of points that are multiplied at a time: so many stay in the processor's cache
LARGER = 64  # times as many at a time elsewhere: a GPU waits for each call, however little it has to do

Blocks = Iterable[Tensor]  # float (points, features) each, in order; can be iterated again


class Points:
    """The points of a split: the stream "point", or images flattened, as seen from `origin`."""

    def __init__(self, samples: Batches, stream: str, origin: Tensor | None = None) -> None:
        self._samples, self._stream, self._origin = samples, stream, origin

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._samples:
            block = batch[self._stream].flatten(1)
            yield block if self._origin is None else block - self._origin


@dataclass(frozen=True)
class Moments:
    """Where points lie and how widely."""

    count: int
    mean: Tensor  # (features,)
    scatter: Tensor  # scalar: the squared distances to the mean, summed

    @property
    def variance(self) -> Tensor:
        """Return the variance, averaged over features."""
        return self.scatter / (self.count * len(self.mean))


def at_once(most: int, each: int, like: Tensor) -> int:
    """Return how many rows of `each` numbers to handle at a time, on the device of a tensor `like` them.

    On a processor these are no more than `most` numbers.
    """
    return max(1, most * (1 if like.device.type == "cpu" else LARGER) // each)


def moments(blocks: Blocks) -> Moments:
    """Return the moments of all points, block by block (Chan et al. 1979): no digits are lost far from 0."""
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for block in blocks:
        total = count + len(block)
        block_mean = block.mean(0)
        step = block_mean - mean.to(block)
        inside = (block - block_mean).square().sum()
        scatter = scatter.to(block) + inside + step.square().sum() * (count * len(block) / total)
        mean = mean.to(block) + step * (len(block) / total)
        count = total
    return Moments(count, mean, scatter)


def take(blocks: Blocks, indices: Tensor) -> Tensor:
    """Return the points (indices, features) at `indices` (on the CPU, in any order), in one pass."""
    order = indices.sort()
    start, first, rows = 0, 0, []
    for block in blocks:
        start += len(block)
        last = int(torch.searchsorted(order.values, start))
        rows.append(block[(order.values[first:last] - start + len(block)).to(block.device)])
        first = last
    found = torch.cat(rows)
    result = torch.empty_like(found)
    result[order.indices.to(found.device)] = found
    return result
