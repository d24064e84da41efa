"""Random augmentation of images, and antialiased resizing with a deterministic backward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

BAND_FRACTION = 0.18  # height of an erased band, as a fraction of the image's
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R 601-2)


def random_affine(
    images: Tensor, *, degrees: float, shift_pixels: float, zoom: float, shear: float = 0.0
) -> Tensor:
    """Return images (batch, channels, height, width), each transformed at random.

    Rotation angles are uniform in ±`degrees`, shifts in ±`shift_pixels`, scale factors of the sampling grid in
    1 ± `zoom`. Shearing shifts each row horizontally, by its distance from the center row times a number in
    ±`shear`. Rotation and scaling are about the center of the image. Pixels from outside the image are 0.
    """
    noise = 2 * torch.rand(len(images), 5 if shear else 4, device=images.device) - 1
    angles = noise[:, 0] * (degrees * (math.pi / 180))
    factors, shifts = 1 + noise[:, 1] * zoom, noise[:, 2:4] * shift_pixels
    shears = noise[:, 4] * shear if shear else torch.zeros_like(angles)
    return transform_affine(images, angles, factors, shifts[:, 0], shifts[:, 1], shears)


def erase_bands(images: Tensor, probability: float) -> Tensor:
    """Return images (batch, channels, height, width), some with a horizontal band of pixels set to 0.

    Each image gets a band with `probability`. The height of the band is BAND_FRACTION of the image height. Its
    first row is uniform between 1/5 and 2/3 of the image height: the margins are often empty. It is a form of
    random erasing (Zhong et al. 2020).
    """
    height, device = images.shape[2], images.device
    num_rows = max(1, round(BAND_FRACTION * height))
    first_rows = torch.randint(height // 5, max(2 * height // 3, height // 5 + 1), (len(images), 1), device=device)
    offsets = torch.arange(height, device=device) - first_rows  # (batch, height)
    is_erased = (offsets >= 0) & (offsets < num_rows) & (torch.rand(len(images), 1, device=device) < probability)
    return images * ~is_erased[:, None, :, None]


def transform_affine(
    images: Tensor,
    angles: Tensor,
    factors: Tensor,
    shifts_x: Tensor,
    shifts_y: Tensor,
    shears: Tensor | None = None,
) -> Tensor:
    """Return images (batch, channels, height, width), each rotated, scaled, shifted and sheared by given numbers.

    Each argument after the images is (batch,). They transform the sampling grid: the content moves in the opposite
    direction. Angles are in radians, shifts in pixels. `shears` are horizontal shifts of a row, divided by its
    signed distance from the center row. Pixels from outside are 0.
    """
    height, width = images.shape[2:]
    cos, sin = angles.cos() * factors, angles.sin() * factors
    slants = torch.zeros_like(cos) if shears is None else shears
    # affine_grid coordinates run from -1 to 1 in both directions, whatever the size. Without the ratio of height
    # and width, a rotation would shear images that are not square.
    first_rows = torch.stack([cos, (cos * slants - sin) * height / width, shifts_x * 2 / width], 1)
    second_rows = torch.stack([sin * width / height, sin * slants + cos, shifts_y * 2 / height], 1)
    grid = F.affine_grid(torch.stack([first_rows, second_rows], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


@dataclass(frozen=True)
class Augmentation:
    """Random transformations of training images, drawn separately for each image."""

    flip: bool = False  # exchange left and right, with probability 1/2
    crop: int = 0  # pixels of a black border, added before a random crop to the original size
    rotation: float = 0.0  # largest angle, in degrees
    jitter: float = 0.0  # brightness, contrast and saturation change by factors in 1 ± this

    num_draws: ClassVar[int] = 7  # random numbers for each image

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return changed images (batch, channels, height, width), from draws (batch, num_draws) in [0, 1).

        Images are in [0, 1]. The change of an image depends on its own draws only.
        """
        draws = draws.to(images)
        if self.flip or self.crop:
            shifts = ((2 * self.crop + 1) * draws[:, 1:3]).long() - self.crop
            is_flipped = (draws[:, 0] < 0.5) & self.flip
            images = flip_and_shift(images, is_flipped, shifts[:, 0], shifts[:, 1])
        if self.rotation:
            angles = (2 * draws[:, 3] - 1) * (self.rotation * (math.pi / 180))
            zeros = torch.zeros_like(angles)
            images = transform_affine(images, angles, torch.ones_like(angles), zeros, zeros)
        return scale_color(images, 1 + (2 * draws[:, 4:] - 1) * self.jitter) if self.jitter else images


def flip_and_shift(images: Tensor, is_flipped: Tensor, shifts_x: Tensor, shifts_y: Tensor) -> Tensor:
    """Return images (batch, channels, height, width), each flipped horizontally or not, then shifted by pixels.

    `is_flipped` is bool (batch,), shifts are int64 (batch,). Pixels from outside the image are 0.
    """
    for axis, shifts in ((3, shifts_x), (2, shifts_y)):
        size = images.shape[axis]
        sources = torch.arange(size, device=images.device) - shifts[:, None]  # (batch, size)
        is_inside = (sources >= 0) & (sources < size)
        if axis == 3:
            sources = torch.where(is_flipped[:, None], size - 1 - sources, sources)
        view = (len(images), 1, 1, size) if axis == 3 else (len(images), 1, size, 1)
        indices = sources.clamp(0, size - 1).view(view).expand(images.shape)
        images = images.gather(axis, indices) * is_inside.view(view)
    return images


def scale_color(images: Tensor, factors: Tensor) -> Tensor:
    """Return images (batch, channels, height, width) in [0, 1], with changed brightness, contrast and saturation.

    `factors` (batch, 3) are the factors of brightness, contrast and saturation. Gray images have no saturation.
    """
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    if images.shape[1] == 3:
        gray = to_gray(images)
        images = gray + (images - gray) * saturation
    return images.clamp(0, 1)


def to_gray(images: Tensor) -> Tensor:
    """Return the luma (batch, 1, height, width) of images (batch, 3, height, width), with Pillow's weights."""
    return torch.tensordot(images, images.new_tensor(GRAY_WEIGHTS), dims=([1], [0])).unsqueeze(1)


def jitter_color(images: Tensor) -> Tensor:
    """Return images (batch, channels, height, width), each with a random change of brightness and contrast.

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


# Random changes of all inputs of a discriminator, real and generated images. Gradients pass through them.
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
