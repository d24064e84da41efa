"""Whether more or less of a metric is better, as far as its name tells."""

from __future__ import annotations

import re
from typing import Literal

MORE = "psnr|ssim|acc|nmi|ari|precision|recall|density|coverage|accuracy"
LESS = "mse|l1|loss|kl|negative_elbo|frechet|inertia|domain_distance"


def better_direction(metric: str) -> Literal["min", "max"] | None:
    """Return the direction in which a metric is better; None for one that is not known.

    A known name may have words before and after it: noisy_psnr, frechet_mnist-v1.
    """
    if re.search(rf"(^|_)({MORE})(_|$)", metric):
        return "max"
    return "min" if re.search(rf"(^|_)({LESS})(_|$)", metric) else None
