"""Mean of per-sample scores over a split, and the direction in which a metric improves."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from genexp.technique import Batch, Batches

HIGHER_IS_BETTER = "psnr|ssim|acc|nmi|ari|precision|recall|density|coverage|accuracy"
LOWER_IS_BETTER = "mse|l1|loss|kl|nll|negative_elbo|negative_bound|frechet|inertia|domain_distance"


def mean_scores(samples: Batches, score_fn: Callable[[Batch], dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean over all samples of each score. `score_fn` maps a batch to scores, (batch,) each."""
    totals: dict[str, Tensor] = {}
    count = 0
    for batch in samples:
        scores = score_fn(batch)
        for name, values in scores.items():
            # float64: a sum of 60,000 float32 terms would lose the digits in which runs differ.
            totals[name] = totals.get(name, torch.zeros(())) + values.double().sum().cpu()
        count += len(next(iter(scores.values())))
    return {name: float(total) / count for name, total in totals.items()}


def infer_direction(metric: str) -> Literal["min", "max"] | None:
    """Return the direction in which a metric improves, or None for an unknown metric.

    A prefix and a suffix of a known name are ignored: noisy_psnr, frechet_mnist-v1.
    """
    if re.search(rf"(^|_)({HIGHER_IS_BETTER})(_|$)", metric):
        return "max"
    return "min" if re.search(rf"(^|_)({LOWER_IS_BETTER})(_|$)", metric) else None
