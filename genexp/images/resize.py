"""Images in another size."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (..., height, width) in another `size`, with a triangular filter as wide as a new pixel.

    As `F.interpolate(mode="bilinear", antialias=True)`, but two matrix products have a backward pass that
    repeats bit for bit on a GPU too.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    down = _weights(height, size[0], images.device)
    across = _weights(width, size[1], images.device)
    return down @ images @ across.T


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _weights(before: int, after: int, device: torch.device) -> Tensor:
    """Return the matrix (after, before) that resamples a line."""
    scale = before / after
    centres = (torch.arange(after, dtype=torch.float64) + 0.5) * scale - 0.5
    distances = (centres[:, None] - torch.arange(before)).abs() / max(scale, 1.0)
    weights = (1 - distances).clamp_min(0)
    return (weights / weights.sum(1, keepdim=True)).to(device, torch.float32)
