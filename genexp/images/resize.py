"""Images in another size."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (..., height, width) in another `size`, with a triangular filter as wide as a new pixel.

    As `F.interpolate(mode="bilinear", antialias=True)`, but two matrix products have a backward pass that
    repeats bit for bit on a GPU too.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    row_weights = _build_resampling_matrix(height, size[0], images.device)
    column_weights = _build_resampling_matrix(width, size[1], images.device)
    return row_weights @ images @ column_weights.T


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _build_resampling_matrix(old_size: int, new_size: int, device: torch.device) -> Tensor:
    """Return the matrix (after, before) that resamples a line."""
    scale = old_size / new_size
    centers = (torch.arange(new_size, dtype=torch.float64) + 0.5) * scale - 0.5
    distances = (centers[:, None] - torch.arange(old_size)).abs() / max(scale, 1.0)
    weights = (1 - distances).clamp_min(0)
    return (weights / weights.sum(1, keepdim=True)).to(device, torch.float32)
