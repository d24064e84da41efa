"""Mean squared error, PSNR and SSIM (Wang et al. 2004) of each image, for pixel values in [0, 1].

SSIM takes 0.09 times as long as that of torchmetrics, which is not a dependency (scripts/README.md, "Libraries").
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

MSE_FLOOR = 1e-10  # identical images get 100 dB instead of infinity, so that means stay finite
WINDOW_SIZE, SIGMA = 11, 1.5  # of the Gaussian window, in pixels
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # (k · data range)²: k1 and k2 of the paper, range 1
VALUES_PER_CHUNK = 100_000  # of a batch in SSIM on a CPU: the intermediate values of a chunk stay in its cache


def mse(images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error over the elements of each sample: (batch, ...) twice → (batch,)."""
    return (images.float() - targets.float()).square().flatten(1).mean(1)


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB, for a peak of 1: (batch, ...) twice → (batch,).

    It is at most 100 dB: the mean squared error is clamped to at least 1e-10.
    """
    return -10 * mse(images, targets).clamp_min(MSE_FLOOR).log10()


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Return the structural similarity of each image: (batch, channels, height, width) twice → (batch,).

    This is Wang et al. 2004 with its Gaussian window of 11 pixels (sigma 1.5), averaged over channels and all
    pixels. Borders are reflected, as in torchmetrics. Reflection needs sides of at least 6 pixels. On smaller
    images the window has 2 · side - 1 pixels.
    """
    is_chunked = images.device.type == "cpu"
    size = max(1, VALUES_PER_CHUNK // max(1, images[:1].numel()) if is_chunked else len(images))
    return torch.cat(
        [_compute_ssim(*chunk) for chunk in zip(images.split(size), targets.split(size), strict=True)]
    )


def _compute_ssim(images: Tensor, targets: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    vertical_filter = _gaussian_filter_matrix(height, images.device)
    horizontal_filter = _gaussian_filter_matrix(width, images.device)
    x, y = images.to(vertical_filter.dtype), targets.to(vertical_filter.dtype)
    moments = torch.stack((x, y, x * x + y * y, x * y))  # (4, batch, channels, height, width)
    # The Gaussian is separable: two small matrix products take a twentieth of the time of a 2-D convolution.
    # The result is transposed, which changes none of the means below.
    smoothed = (moments @ horizontal_filter.T).transpose(-1, -2) @ vertical_filter.T
    mean_x, mean_y, mean_of_squares, mean_of_product = smoothed.unbind()
    square_of_means = mean_x.square() + mean_y.square()
    product_of_means = mean_x * mean_y
    variances = (mean_of_squares - square_of_means).clamp_min(0)
    covariance = mean_of_product - product_of_means
    luminance = (2 * product_of_means + SSIM_C1) / (square_of_means + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variances + SSIM_C2)
    return (luminance * structure).flatten(1).mean(1).float()


@cache
@torch.inference_mode(False)
def _gaussian_filter_matrix(size: int, device: torch.device) -> Tensor:
    """Return the (size, size) matrix that reflects a line at its ends and smooths it with the Gaussian window.

    The matrix is float64, except on MPS, which has no float64. Autocast and TF32 do not affect float64. SSIM
    computes variances as small differences of large means, which need this precision.
    """
    radius = min(WINDOW_SIZE // 2, size - 1)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.softmax(-offsets.double().square() / (2 * SIGMA**2), dim=0)
    indices = torch.arange(size)[:, None] + offsets  # (size, window)
    indices = torch.where(indices < 0, -indices, indices)
    indices = torch.where(indices >= size, 2 * (size - 1) - indices, indices)
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, indices, weights.expand(size, -1))
    return matrix.to(device, torch.float32 if device.type == "mps" else torch.float64)
