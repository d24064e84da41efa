"""Points picked from several blocks, so that they can be handled together."""

from __future__ import annotations

import torch
from torch import Tensor

FEATURES = 2**19  # of all points that are gathered at most, where that is more than one block


class PointBuffer:
    """A buffer of points and their places."""

    def __init__(self, features: int, like: Tensor) -> None:
        self._points = like.new_empty(0, features)
        self._room = max(1, FEATURES // features)
        self._filled = 0
        self._rows: list[Tensor] = []

    def __len__(self) -> int:
        return self._filled

    def has_room(self, count: int) -> bool:
        """Return whether `count` more points should be added before all are taken."""
        return not self._filled or self._filled + count <= self._room

    def add(self, block: Tensor, rows: Tensor, places: Tensor) -> None:
        """Copy the points at `rows` of a block, which are those at `places`."""
        end = self._filled + len(rows)
        if end > len(self._points):
            kept = self._points[: self._filled]
            self._points = block.new_empty(max(end, self._room), block.shape[1])
            self._points[: self._filled] = kept
        torch.index_select(block, 0, rows, out=self._points[self._filled : end])
        self._filled = end
        self._rows.append(places)

    def taken(self) -> tuple[Tensor, Tensor]:
        """Return the points, which stay as they are until others are added, and their places."""
        points, places = self._points[: self._filled], torch.cat(self._rows)
        self._filled, self._rows = 0, []
        return points, places
