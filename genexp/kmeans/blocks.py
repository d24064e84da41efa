"""Point sets in blocks, and computations that take one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.data.stream import SplitBatches
from genexp.sharding import current_shard
from genexp.technique import Batches

CHUNK_ELEMENTS = 2**20  # (points · features) per operation on the CPU, so that they fit in its cache
MAX_VIEW_ROWS = 2**16  # points in a block that is a view of the data set
MIN_ROWS_PER_THREAD = 512  # with fewer points per thread, fewer threads are used
GPU_CHUNK_FACTOR = 64  # factor on chunk sizes on other devices, where each call has a fixed cost

Blocks = Iterable[Tensor]  # float (points, features) each, in order; iterable more than once


class PointBlocks:
    """Flattened samples of one stream of a split, minus `origin` (features,). Each iteration is one pass.

    Blocks are as large as the batches of `samples`, or larger if the blocks are views of the data set.
    """

    def __init__(self, samples: Batches, stream: str, origin: Tensor | None = None) -> None:
        if isinstance(samples, SplitBatches) and samples.are_views and origin is None:
            samples = samples.resize(MAX_VIEW_ROWS)
        self._samples, self._stream, self._origin = samples, stream, origin

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._samples:
            block = batch[self._stream].flatten(1)
            yield block if self._origin is None else block - self._origin


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of a set of points."""

    count: int
    mean: Tensor  # (features,)
    sum_squared_deviations: Tensor  # scalar: sum of the squared distances to the mean

    @property
    def variance(self) -> Tensor:
        """Variance of a feature, averaged over the features: scalar."""
        return self.sum_squared_deviations / (self.count * len(self.mean))


def get_chunk_size(max_elements: int, row_elements: int, like: Tensor) -> int:
    """Return the number of rows in a chunk, at least 1. A row has `row_elements` elements.

    A chunk has at most `max_elements` elements on the CPU, and `GPU_CHUNK_FACTOR` times as many elsewhere.
    The device is that of `like`, a tensor of any shape.
    """
    return max(1, max_elements * (1 if like.device.type == "cpu" else GPU_CHUNK_FACTOR) // row_elements)


def iterate_local_rows(blocks: Blocks) -> Iterator[tuple[Tensor, slice]]:
    """Yield the rows (points, features) of each block that belong to this process, and their place in the data."""
    first = 0
    for block in blocks:
        rows = current_shard().row_slice(len(block))  # the other shards take the other rows
        yield block[rows], slice(first + rows.start, first + rows.stop)
        first += len(block)


def map_rows(function: Callable[[slice], object], num_rows: int, device: torch.device) -> None:
    """Call `function` for slices that make up `num_rows` rows: on the CPU, in a thread for each core.

    Each thread runs torch operations on one core. This is faster than operations that use several threads each,
    which have to synchronize after every short operation.
    """
    threads = torch.get_num_threads()
    parts = min(threads, num_rows // MIN_ROWS_PER_THREAD) if device.type == "cpu" else 1
    if parts < 2:
        function(slice(0, num_rows))
        return
    slices = [slice(part * num_rows // parts, (part + 1) * num_rows // parts) for part in range(parts)]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(torch.no_grad()(function), slices))
    finally:
        torch.set_num_threads(threads)


def moments(blocks: Blocks) -> Moments:
    """Return the moments of all points, merged chunk by chunk (Chan et al. 1979).

    This keeps full precision for points far from 0.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for block in blocks:
        for chunk in block.split(get_chunk_size(CHUNK_ELEMENTS, block.shape[1], block)):
            new_count = count + len(chunk)
            chunk_mean = chunk.mean(0)
            delta = chunk_mean - mean.to(chunk)
            chunk_scatter = (chunk - chunk_mean).square_().sum()
            scatter = scatter.to(chunk) + chunk_scatter + delta.square().sum() * (count * len(chunk) / new_count)
            mean = mean.to(chunk) + delta * (len(chunk) / new_count)
            count = new_count
    return Moments(count, mean, scatter)


def take(blocks: Blocks, indices: Tensor) -> Tensor:
    """Return the points (indices, features) at `indices`, in one pass over the blocks.

    `indices` is int64 (indices,) on the CPU, in any order.
    """
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
