"""Conversion of training curves into one row per step, and epoch means of training metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from genexp.snapshot import Curve

CellT = TypeVar("CellT")


def iter_step_rows(
    curves: Mapping[str, Curve], columns: Mapping[str, Sequence[CellT]]
) -> Iterator[tuple[int, tuple[str, ...], tuple[CellT, ...]]]:
    """Yield (step, metric names, cells) in order of steps.

    `columns` has the keys of `curves`, and one cell for each point of the curve.
    A metric that is absent at a step is absent from its row.
    """
    if not curves:
        return
    first, *others = (curve.steps for curve in curves.values())
    if all(np.array_equal(first, other) for other in others):
        names = tuple(curves)
        for step, cells in zip(first.tolist(), zip(*columns.values(), strict=True), strict=True):
            yield step, names, cells
        return
    merged: dict[int, dict[str, CellT]] = {}
    for name, curve in curves.items():
        for step, cell in zip(curve.steps.tolist(), columns[name], strict=True):
            merged.setdefault(step, {})[name] = cell
    for step in sorted(merged):
        yield step, tuple(merged[step]), tuple(merged[step].values())


class EpochMeans:
    """Mean of each training metric over an epoch.

    The curves of an epoch may arrive in any number of blocks, and a block may span several epochs.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._epoch = 0
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, curves: Mapping[str, Curve]) -> tuple[int, dict[str, float]] | None:
        """Add a block of consecutive steps.

        Return the last epoch that ended within the block and its means, or None if no epoch ended.
        """
        if not curves:
            return None
        first = min(int(curve.steps[0]) for curve in curves.values())
        last = max(int(curve.steps[-1]) for curve in curves.values())
        num_complete_epochs, steps_in_next_epoch = divmod(last, self._steps_per_epoch)
        last_epoch_result = None
        if num_complete_epochs * self._steps_per_epoch >= first:
            self._accumulate(curves, num_complete_epochs)
            last_epoch_result = num_complete_epochs, self.compute_means()
        if steps_in_next_epoch:
            self._accumulate(curves, num_complete_epochs + 1)
        return last_epoch_result

    def compute_means(self) -> dict[str, float]:
        """Return the means over the steps added so far of the latest epoch."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def _accumulate(self, curves: Mapping[str, Curve], epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch = epoch
            self._sums.clear()
        bounds = np.array([epoch - 1, epoch]) * self._steps_per_epoch
        for name, curve in curves.items():
            begin, end = curve.steps.searchsorted(bounds, side="right")
            if begin < end:
                total, count = self._sums.get(name, (0.0, 0))
                values = curve.values[begin:end]
                self._sums[name] = total + float(values.sum(dtype=np.float64)), count + len(values)
