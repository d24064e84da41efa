"""What Lloyd's algorithm may keep of the points besides their clusters, to compare them with fewer centers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AssignmentBounds(Protocol):
    """What spares comparisons. It changes no result."""

    def invalidate(self, starts: Tensor, points: Tensor) -> None:
        """Drop what concerns the clusters of `points`, in `starts`: these were given to others."""

    def select_starts(self, starts: Tensor) -> AssignmentBounds:
        """Return what concerns `starts` (indices) alone."""
