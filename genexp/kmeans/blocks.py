"""Points in blocks: what one pass over them can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.technique import Batches

CHUNK_ELEMENTS = 2**20  # of points that are multiplied at a time: so many stay in the processor's cache
GPU_CHUNK_FACTOR = 64  # times as many at a time elsewhere: a GPU waits for each call, however little it has to do

Blocks = Iterable[Tensor]  # float (points, features) each, in order; can be iterated again


class PointBlocks:
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


def get_chunk_rows(max_elements: int, row_elements: int, like: Tensor) -> int:
    """Return how many rows of `each` numbers to handle at a time, on the device of a tensor `like` them.

    On a processor these are no more than `most` numbers.
    """
    return max(1, max_elements * (1 if like.device.type == "cpu" else GPU_CHUNK_FACTOR) // row_elements)


def moments(blocks: Blocks) -> Moments:
    """Return the moments of all points, block by block (Chan et al. 1979): no digits are lost far from 0."""
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for block in blocks:
        new_count = count + len(block)
        block_mean = block.mean(0)
        delta = block_mean - mean.to(block)
        block_scatter = (block - block_mean).square().sum()
        scatter = scatter.to(block) + block_scatter + delta.square().sum() * (count * len(block) / new_count)
        mean = mean.to(block) + delta * (len(block) / new_count)
        count = new_count
    return Moments(count, mean, scatter)


def take(blocks: Blocks, indices: Tensor) -> Tensor:
    """Return the points (indices, features) at `indices` (on the CPU, in any order), in one pass."""
    order = indices.sort()
    block_end, first, rows = 0, 0, []
    for block in blocks:
        block_end += len(block)
        last = int(torch.searchsorted(order.values, block_end))
        rows.append(block[(order.values[first:last] - block_end + len(block)).to(block.device)])
        first = last
    points = torch.cat(rows)
    result = torch.empty_like(points)
    result[order.indices.to(points.device)] = points
    return result
