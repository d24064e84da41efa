"""Tracker of the latest scores, the best score, the epoch means and the warnings of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from genexp.snapshot import Curve, RunProgress


class ProgressTracker:
    """Tracker of the scores, epoch means and warnings of a run.

    A checkpoint contains `progress`, from which a resumed run continues. The result does not depend on the sizes
    of the blocks in which the training metrics are added.
    """

    def __init__(
        self,
        objective: str,
        direction: str,
        steps_per_epoch: int,
        step: int,
        progress: RunProgress,
        *,
        min_improvement: float = 0.0,
        plateau_steps: Mapping[str, int] | None = None,
    ) -> None:
        """Continue from `progress`, the record up to `step`. `direction` is "min" or "max".

        Improvements smaller than `min_improvement` do not count for early stopping. `plateau_steps` is
        phase → steps without improvement after which its learning rate is reduced.
        """
        self._objective, self._sign = objective, 1 if direction == "max" else -1
        self._min_improvement, self._plateau_steps = min_improvement, plateau_steps or {}
        self._steps_per_epoch, self._step = steps_per_epoch, step
        self.progress = progress

    def add_curves(self, curves: Mapping[str, Curve], step: int) -> list[dict[str, float]]:
        """Add the training metrics of the steps up to `step`. Return the means of each ended epoch."""
        ended_epoch_means = []
        for epoch in range(self._step // self._steps_per_epoch + 1, -(-step // self._steps_per_epoch) + 1):
            self._accumulate(curves, epoch)
            if epoch * self._steps_per_epoch <= step:
                ended_epoch_means.append(self.progress.train_means)
        self._step = step
        return ended_epoch_means

    def add_scores(self, test_metrics: Mapping[str, float], step: int) -> None:
        """Add the test metrics of an evaluation after `step`."""
        self.progress = replace(self.progress, test_metrics=dict(test_metrics))
        value, best = test_metrics.get(self._objective, math.nan), self.progress.best_value
        if math.isfinite(value) and (best is None or self._sign * value > self._sign * best):
            self.progress = replace(self.progress, best_value=value, best_step=step)
        reference = self.progress.reference_value
        is_improved = reference is None or self._sign * (value - reference) > self._min_improvement
        if math.isfinite(value) and is_improved:
            self.progress = replace(self.progress, reference_value=value, reference_step=step)
        self._reduce_on_plateau(step)

    def _reduce_on_plateau(self, step: int) -> None:
        """Count a reduction of each phase whose last improvement and last reduction are long ago."""
        counts, last_steps = dict(self.progress.plateau_reductions), dict(self.progress.plateau_steps)
        reference_step = step if self.progress.reference_step is None else self.progress.reference_step
        for phase, patience in self._plateau_steps.items():
            if step - max(reference_step, last_steps.get(phase, 0)) >= patience:
                counts[phase], last_steps[phase] = counts.get(phase, 0) + 1, step
        self.progress = replace(self.progress, plateau_reductions=counts, plateau_steps=last_steps)

    def add_warnings(self, warnings: Iterable[str]) -> None:
        """Add warnings. A repeated warning is kept once."""
        self.progress = replace(self.progress, warnings=tuple(dict.fromkeys((*self.progress.warnings, *warnings))))

    def _accumulate(self, curves: Mapping[str, Curve], epoch: int) -> None:
        """Add the values in `epoch` to its sums, which start at zero in the first step of the epoch."""
        first, last = (epoch - 1) * self._steps_per_epoch, epoch * self._steps_per_epoch
        is_new_epoch = self._step <= first
        sums = {} if is_new_epoch else dict(self.progress.train_sums)
        counts = {} if is_new_epoch else dict(self.progress.train_counts)
        for name, curve in curves.items():
            begin, end = curve.steps.searchsorted([first, last], side="right")
            if begin < end:
                # In order of the steps: another order would round differently.
                addends = np.concatenate(([sums.get(name, 0.0)], curve.values[begin:end].astype(np.float64)))
                sums[name] = float(np.add.accumulate(addends)[-1])
                counts[name] = counts.get(name, 0) + int(end - begin)
        self.progress = replace(self.progress, train_sums=sums, train_counts=counts)
