"""Averaging per-sample scores over a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genexp.technique import Batch, Batches


def mean_scores(samples: Batches, score: Callable[[Batch], dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean over all samples of each per-sample score (batch,) that `score` gives."""
    totals: dict[str, Tensor] = {}
    count = 0
    for batch in samples:
        scores = score(batch)
        for name, values in scores.items():
            # float64: 60,000 float32 terms would lose the last digits that a comparison wants.
            totals[name] = totals.get(name, torch.zeros(())) + values.double().sum().cpu()
        count += len(next(iter(scores.values())))
    return {name: float(total) / count for name, total in totals.items()}
