"""Keeping a photograph's colours while its style changes.

Gatys, Bethge, Hertzmann & Shechtman 2016, "Preserving Color in Neural Artistic Style Transfer".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # parts of red, green and blue in the luminance of YIQ


class Colour(NamedTuple):
    """What is learned of an image, and how that becomes a picture."""

    channels: int  # of the learned image
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # content, style → what they are learned from
    restore: Callable[[Tensor, Tensor], Tensor]  # learned image, content → picture


def luminance(images: Tensor) -> Tensor:
    """Return (batch, 1, height, width) of RGB images."""
    return (images * torch.tensor(LUMA, device=images.device).view(3, 1, 1)).sum(1, keepdim=True)


def _as_luminances(content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Return both without colour, the style's mean and deviation brought to the content's (section 3.2)."""
    bright, other = luminance(content), luminance(style)
    matched = (other - other.mean()) / other.std().clamp_min(1e-6) * bright.std() + bright.mean()
    return bright.expand(-1, 3, -1, -1), matched.expand(-1, 3, -1, -1)


def _coloured(bright: Tensor, content: Tensor) -> Tensor:
    # Y's column in the matrix from YIQ to RGB is all ones: to change Y is to add the same to each channel.
    return (content + bright - luminance(content)).clamp(0, 1)


def _in_colours_of_content(content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Return the style with the content's mean colour and covariance of colours (section 3.1)."""
    mean, root = _colour_statistics(content, 0.5)
    style_mean, inverse_root = _colour_statistics(style, -0.5)
    pixels = style.flatten(2) - style_mean  # (1, 3, places)
    return content, (root @ inverse_root @ pixels + mean).view_as(style).clamp(0, 1)


def _colour_statistics(image: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Return the mean colour (3, 1) of an image (1, 3, height, width), and a power of the covariance (3, 3)."""
    pixels = image[0].flatten(1).double().cpu()  # not every device has eigenvectors, or doubles
    values, vectors = torch.linalg.eigh(pixels.cov())
    root = vectors * values.clamp_min(1e-5) ** power @ vectors.T
    return pixels.mean(1, keepdim=True).to(image), root.to(image)


COLOURS = {
    "none": Colour(3, lambda content, style: (content, style), lambda image, content: image),
    "luminance": Colour(1, _as_luminances, _coloured),
    "histogram": Colour(3, _in_colours_of_content, lambda image, content: image),
}
