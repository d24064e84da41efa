"""Keeping a photograph's colors while its style changes.

Gatys, Bethge, Hertzmann & Shechtman 2016, "Preserving Color in Neural Artistic Style Transfer".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # parts of red, green and blue in the luminance of YIQ


class ColorMode(NamedTuple):
    """What is learned of an image, and how that becomes a picture."""

    channels: int  # of the learned image
    preprocess: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # content, style → what they are learned from
    restore: Callable[[Tensor, Tensor], Tensor]  # learned image, content → picture


def luminance(images: Tensor) -> Tensor:
    """Return (batch, 1, height, width) of RGB images."""
    return (images * torch.tensor(LUMA_WEIGHTS, device=images.device).view(3, 1, 1)).sum(1, keepdim=True)


def _match_luminance(content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Return both without color, the style's mean and deviation brought to the content's (section 3.2)."""
    content_luminance, style_luminance = luminance(content), luminance(style)
    matched = (style_luminance - style_luminance.mean()) / style_luminance.std().clamp_min(
        1e-6
    ) * content_luminance.std() + content_luminance.mean()
    return content_luminance.expand(-1, 3, -1, -1), matched.expand(-1, 3, -1, -1)


def _restore_color(learned_luminance: Tensor, content: Tensor) -> Tensor:
    # Y's column in the matrix from YIQ to RGB is all ones: to change Y is to add the same to each channel.
    return (content + learned_luminance - luminance(content)).clamp(0, 1)


def _match_color_statistics(content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Return the style with the content's mean color and covariance of colors (section 3.1)."""
    mean, root = _compute_color_statistics(content, 0.5)
    style_mean, inverse_root = _compute_color_statistics(style, -0.5)
    pixels = style.flatten(2) - style_mean  # (1, 3, places)
    return content, (root @ inverse_root @ pixels + mean).view_as(style).clamp(0, 1)


def _compute_color_statistics(image: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Return the mean color (3, 1) of an image (1, 3, height, width), and a power of the covariance (3, 3)."""
    pixels = image[0].flatten(1).double().cpu()  # not every device has eigenvectors, or doubles
    values, vectors = torch.linalg.eigh(pixels.cov())
    root = vectors * values.clamp_min(1e-5) ** power @ vectors.T
    return pixels.mean(1, keepdim=True).to(image), root.to(image)


COLOR_MODES = {
    "none": ColorMode(3, lambda content, style: (content, style), lambda image, content: image),
    "luminance": ColorMode(1, _match_luminance, _restore_color),
    "histogram": ColorMode(3, _match_color_statistics, lambda image, content: image),
}
