"""Points picked from several blocks, so that they can be handled together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Picked = Iterator[tuple[Tensor, Tensor]]  # points, which stay only until the next are asked for, and their places


class PointBuffer:
    """Hands out points, `room` of them at a time."""

    def __init__(self, room: int, features: int, like: Tensor) -> None:
        self._points = like.new_empty(room, features)
        self._places: list[Tensor] = []
        self._filled = 0

    def add(self, block: Tensor, rows: Tensor, places: Tensor) -> Picked:
        """Copy the points at `rows` of a block, which are those at `places`; yield all when there is no room."""
        while len(rows):
            count = min(len(rows), len(self._points) - self._filled)
            end = self._filled + count
            torch.index_select(block, 0, rows[:count], out=self._points[self._filled : end])
            self._places.append(places[:count])
            self._filled, rows, places = end, rows[count:], places[count:]
            if end == len(self._points):
                yield from self.rest()

    def rest(self) -> Picked:
        """Yield what is left."""
        if self._filled:
            yield self._points[: self._filled], torch.cat(self._places)
        self._filled, self._places = 0, []
