"""Color preservation in style transfer.

Gatys, Bethge, Hertzmann & Shechtman 2016, "Preserving Color in Neural Artistic Style Transfer".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # weights of red, green and blue in the luminance Y of YIQ


class ColorMode(NamedTuple):
    """Preprocessing and postprocessing of one way to keep the colors of the content image.

    Images are float (1, 3, height, width) in [0, 1]. The optimized image has `channels` channels.
    """

    channels: int  # of the optimized image: 1 (luminance) or 3 (RGB)
    preprocess: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (content, style) → the pair to train on
    postprocess: Callable[[Tensor, Tensor], Tensor]  # (optimized image, content) → RGB image


def luminance(images: Tensor) -> Tensor:
    """Return the luminance (batch, 1, height, width) of RGB images (batch, 3, height, width)."""
    return (images * torch.tensor(LUMA_WEIGHTS, device=images.device).view(3, 1, 1)).sum(1, keepdim=True)


def _match_luminance(content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Return the luminance of both images in three equal channels (section 3.2).

    The style's luminance is shifted and scaled to the mean and standard deviation of the content's.
    """
    content_luminance, style_luminance = luminance(content), luminance(style)
    matched = (style_luminance - style_luminance.mean()) / style_luminance.std().clamp_min(
        1e-6
    ) * content_luminance.std() + content_luminance.mean()
    return content_luminance.expand(-1, 3, -1, -1), matched.expand(-1, 3, -1, -1)


def _add_luminance_change(learned_luminance: Tensor, content: Tensor) -> Tensor:
    # In the matrix from YIQ to RGB, the column of Y is all ones: a change of Y adds equally to each channel.
    return (content + learned_luminance - luminance(content)).clamp(0, 1)


def _match_color_statistics(content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Return the content, and the style with the content's mean and covariance of colors (section 3.1)."""
    mean, root = _compute_color_statistics(content, 0.5)
    style_mean, inverse_root = _compute_color_statistics(style, -0.5)
    pixels = style.flatten(2) - style_mean  # (1, 3, height·width)
    return content, (root @ inverse_root @ pixels + mean).view_as(style).clamp(0, 1)


def _compute_color_statistics(image: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Return the mean (3, 1) and a matrix power of the covariance (3, 3) of an image's colors.

    `image` is (1, 3, height, width). `power` is the exponent, 0.5 for the square root.
    """
    pixels = image[0].flatten(1).double().cpu()  # some devices lack eigendecomposition or float64
    values, vectors = torch.linalg.eigh(pixels.cov())
    covariance_power = vectors * values.clamp_min(1e-5) ** power @ vectors.T
    return pixels.mean(1, keepdim=True).to(image), covariance_power.to(image)


COLOR_MODES = {
    "none": ColorMode(3, lambda content, style: (content, style), lambda image, content: image),
    "luminance": ColorMode(1, _match_luminance, _add_luminance_change),
    "histogram": ColorMode(3, _match_color_statistics, lambda image, content: image),
}
