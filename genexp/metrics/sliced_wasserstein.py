"""Sliced Wasserstein distance of two sets of images (Rabin et al. 2012)."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_PROJECTIONS = 256  # number of random directions


def sliced_wasserstein(first: Tensor, second: Tensor, num_projections: int = NUM_PROJECTIONS) -> Tensor:
    """Return the sliced Wasserstein-1 distance of two equally large sets of images (samples, ...): scalar.

    Both sets are projected onto random directions. Along each, the distance is the mean absolute difference of the
    sorted values (Rabin et al. 2012). It is 0 for equal sets in any order. The directions come from torch's global
    generator.
    """
    assert len(first) == len(second)
    features = first[0].numel()
    directions = torch.randn(features, num_projections, device=first.device)
    directions = directions / directions.norm(dim=0)
    projected = (images.float().flatten(1) @ directions for images in (first, second))  # (samples, projections)
    first_sorted, second_sorted = (values.sort(dim=0).values for values in projected)
    return (first_sorted - second_sorted).abs().mean()
