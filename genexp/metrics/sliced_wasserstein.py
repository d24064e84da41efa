"""How far apart two sets of images are, without a network."""

from __future__ import annotations

import torch
from torch import Tensor

PROJECTIONS = 256


def sliced_wasserstein(first: Tensor, second: Tensor, projections: int = PROJECTIONS) -> Tensor:
    """Return the sliced Wasserstein-1 distance of two equally large sets of images (samples, ...).

    Both are projected on random directions, where the distance is that of the sorted values (Rabin et al. 2012).
    0 for equal sets, in any order; the directions come from torch's global generator.
    """
    assert len(first) == len(second)
    features = first[0].numel()
    directions = torch.randn(features, projections, device=first.device)
    directions = directions / directions.norm(dim=0)
    projected = (images.float().flatten(1) @ directions for images in (first, second))  # (samples, projections)
    first_sorted, second_sorted = (values.sort(dim=0).values for values in projected)
    return (first_sorted - second_sorted).abs().mean()
