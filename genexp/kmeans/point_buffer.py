"""Points picked from several blocks, so that they can be handled together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PointChunks = Iterator[
    tuple[Tensor, Tensor]
]  # points, which stay only until the next are asked for, and their places


class PointBuffer:
    """Hands out points, `room` of them at a time."""

    def __init__(self, capacity: int, features: int, like: Tensor) -> None:
        self._points = like.new_empty(capacity, features)
        self._indices: list[Tensor] = []
        self._size = 0

    def add(self, block: Tensor, rows: Tensor, indices: Tensor) -> PointChunks:
        """Copy the points at `rows` of a block, which are those at `places`; yield all when there is no room."""
        while len(rows):
            count = min(len(rows), len(self._points) - self._size)
            end = self._size + count
            torch.index_select(block, 0, rows[:count], out=self._points[self._size : end])
            self._indices.append(indices[:count])
            self._size, rows, indices = end, rows[count:], indices[count:]
            if end == len(self._points):
                yield from self.flush()

    def flush(self) -> PointChunks:
        """Yield what is left."""
        if self._size:
            yield self._points[: self._size], torch.cat(self._indices)
        self._size, self._indices = 0, []
