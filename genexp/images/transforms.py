"""Random changes of images that leave what they show the same."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(images: Tensor, *, degrees: float, pixels: float, zoom: float) -> Tensor:
    """Return images (batch, channels, height, width), each turned, shifted and zoomed at random about its middle.

    Angles lie within ±`degrees`, shifts within ±`pixels`, factors within 1 ± `zoom`, all uniform. What comes in
    from outside is 0.
    """
    count, _, height, width = images.shape
    rotation, scale, shift_x, shift_y = (2 * torch.rand(count, 4, device=images.device) - 1).unbind(1)
    angle, factor = rotation * (degrees * (math.pi / 180)), 1 + scale * zoom
    cos, sin = angle.cos() * factor, angle.sin() * factor
    # Coordinates run from -1 to 1, whatever the size: a square turns as a square only if they are scaled alike.
    first_rows = torch.stack([cos, -sin * height / width, shift_x * pixels * 2 / width], 1)
    second_rows = torch.stack([sin * width / height, cos, shift_y * pixels * 2 / height], 1)
    grid = F.affine_grid(torch.stack([first_rows, second_rows], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


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
