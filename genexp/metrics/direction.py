"""Whether more or less of a metric is better, as far as its name tells."""

from __future__ import annotations

import re
from typing import Literal

HIGHER_IS_BETTER = "psnr|ssim|acc|nmi|ari|precision|recall|density|coverage|accuracy"
LOWER_IS_BETTER = "mse|l1|loss|kl|negative_elbo|frechet|inertia|domain_distance"


def infer_direction(metric: str) -> Literal["min", "max"] | None:
    """Return the direction in which a metric is better; None for one that is not known.

    A known name may have words before and after it: noisy_psnr, frechet_mnist-v1.
    """
    if re.search(rf"(^|_)({HIGHER_IS_BETTER})(_|$)", metric):
        return "max"
    return "min" if re.search(rf"(^|_)({LOWER_IS_BETTER})(_|$)", metric) else None
