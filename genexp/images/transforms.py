"""Random augmentation of images, and antialiased resizing with a deterministic backward pass."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(images: Tensor, *, degrees: float, shift_pixels: float, zoom: float) -> Tensor:
    """Return images (batch, channels, height, width), each rotated, shifted and scaled at random.

    Angles are uniform in ±`degrees`, shifts in ±`shift_pixels`, scale factors of the sampling grid in 1 ± `zoom`.
    Rotation and scaling are about the center of the image. Pixels from outside the image are 0.
    """
    count, _, height, width = images.shape
    rotation, scale_noise, shift_x, shift_y = (2 * torch.rand(count, 4, device=images.device) - 1).unbind(1)
    angle, factor = rotation * (degrees * (math.pi / 180)), 1 + scale_noise * zoom
    cos, sin = angle.cos() * factor, angle.sin() * factor
    # affine_grid coordinates run from -1 to 1 in both directions, whatever the size. Without the ratio of height
    # and width, a rotation would shear images that are not square.
    first_rows = torch.stack([cos, -sin * height / width, shift_x * shift_pixels * 2 / width], 1)
    second_rows = torch.stack([sin * width / height, cos, shift_y * shift_pixels * 2 / height], 1)
    grid = F.affine_grid(torch.stack([first_rows, second_rows], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def jitter_color(images: Tensor) -> Tensor:
    """Return images (batch, channels, height, width), each with another brightness and contrast.

    Brightness changes by a number in ±0.5, contrast by a factor in [0.5, 1.5] (Zhao et al. 2020).
    """
    brightness, contrast = torch.rand(len(images), 2, device=images.device)[:, :, None, None, None].unbind(1)
    brighter = images + (brightness - 0.5)
    mean = brighter.mean((1, 2, 3), keepdim=True)
    return mean + (brighter - mean) * (contrast + 0.5)


def translate(images: Tensor) -> Tensor:
    """Return images (batch, channels, height, width), each shifted by up to 1/8 of its size (Zhao et al. 2020).

    Pixels from outside the image are 0.
    """
    shifted = images
    for axis in (2, 3):
        size = images.shape[axis]
        limit = round(size / 8)
        shifts = torch.randint(-limit, limit + 1, (len(images), 1), device=images.device)
        sources = torch.arange(size, device=images.device) - shifts  # (batch, size)
        view = (len(images), 1, size, 1) if axis == 2 else (len(images), 1, 1, size)
        is_inside = ((sources >= 0) & (sources < size)).view(view)
        indices = sources.clamp(0, size - 1).view(view).expand(images.shape)
        shifted = shifted.gather(axis, indices) * is_inside
    return shifted


def cut_out(images: Tensor) -> Tensor:
    """Return images (batch, channels, height, width), each with a square of half its size set to 0.

    The center of the square is anywhere in the image (DeVries & Taylor 2017; Zhao et al. 2020).
    """
    is_kept = torch.zeros((), dtype=torch.bool, device=images.device)
    for axis in (2, 3):
        size = images.shape[axis]
        centers = torch.randint(0, size, (len(images), 1), device=images.device)
        distances = (torch.arange(size, device=images.device) - centers).abs()  # (batch, size)
        is_outside = distances > size / 4
        is_kept = is_kept | is_outside.view((len(images), 1, size, 1) if axis == 2 else (len(images), 1, 1, size))
    return images * is_kept


# Random changes that discriminators see of real and generated images alike; gradients pass through them.
DIFFERENTIABLE_AUGMENTATIONS = {"color": jitter_color, "translation": translate, "cutout": cut_out}


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (batch, channels, height, width) resized to `size` = (height, width).

    The filter is bilinear and antialiased. On a GPU the backward pass of `F.interpolate` is not deterministic.
    There the same filter is applied as two matrix products, which take twice the time on a CPU.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, size, mode="bilinear", antialias=True)
    return resample(images, size)


def resample(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (..., height, width) resized to `size` by one matrix product for each axis."""
    height, width = images.shape[-2:]
    row_weights = _build_resampling_matrix(height, size[0], images.device)
    column_weights = _build_resampling_matrix(width, size[1], images.device)
    return row_weights @ images @ column_weights.T


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # autograd cannot save a cached inference tensor for a later backward pass
def _build_resampling_matrix(old_size: int, new_size: int, device: torch.device) -> Tensor:
    """Return the float32 matrix (new_size, old_size) that resamples a row or column of pixels."""
    scale = old_size / new_size
    centers = (torch.arange(new_size, dtype=torch.float64) + 0.5) * scale - 0.5
    distances = (centers[:, None] - torch.arange(old_size)).abs() / max(scale, 1.0)
    weights = (1 - distances).clamp_min(0)
    return (weights / weights.sum(1, keepdim=True)).to(device, torch.float32)
