"""Distributions of pixels given the outputs of a decoder: Bernoulli, continuous Bernoulli and Gaussian."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from genexp.losses import LOSSES, register_loss
from genexp.losses.reconstruction import bernoulli_log_likelihood

SERIES_LIMIT = 0.03  # absolute logit below which the continuous Bernoulli uses a Taylor series
PIXEL_LIKELIHOODS = LOSSES["likelihood"]
INITIAL_STD, MIN_STD = 0.1, 1e-3  # of the Gaussian, in units of the pixel range [0, 1]


class PixelLikelihood(nn.Module, ABC):
    """Distribution of independent pixels.

    `outputs` are those of a decoder, in full precision: (batch, channels, height, width).
    """

    @abstractmethod
    def log_prob(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return log p(image | outputs) in nats, summed over the pixels: (batch, ...) each → (batch,)."""

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the expected images in [0, 1], in the shape of `outputs`."""
        return outputs.sigmoid()


@register_loss("bernoulli", kind="likelihood")
class BernoulliLikelihood(PixelLikelihood):
    """Bernoulli distribution with `outputs` as logits. It is a likelihood for binary images only."""

    def log_prob(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the log likelihood of binary images, or the negative cross-entropy of images in [0, 1]."""
        return bernoulli_log_likelihood(outputs, images)


@register_loss("continuous_bernoulli", kind="likelihood")
class ContinuousBernoulliLikelihood(PixelLikelihood):
    """Normalized Bernoulli density for pixels in [0, 1] (Loaiza-Ganem & Cunningham 2019), with logits."""

    def log_prob(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the log density of images in [0, 1]; it may be positive."""
        return bernoulli_log_likelihood(outputs, images) + log_normalizer(outputs).flatten(1).sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the expected images. For a logit l it is 1 / (1 - exp(-l)) - 1 / l."""
        is_small = outputs.abs() < SERIES_LIMIT
        safe = torch.where(is_small, 1.0, outputs)
        exact = -1 / torch.expm1(-safe) - 1 / safe
        return torch.where(is_small, 0.5 + outputs / 12, exact)


@register_loss("gaussian", kind="likelihood")
class GaussianLikelihood(PixelLikelihood):
    """Gaussian density with a sigmoid of `outputs` as mean, and one learned standard deviation for all pixels.

    If not `is_bounded`, `outputs` are the mean: for points, whose features are any numbers.
    """

    is_bounded = True

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor(math.log(INITIAL_STD)))

    def log_prob(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the log density of images; it may be positive."""
        log_std = self.log_std.clamp(min=math.log(MIN_STD))
        errors = (self.mean(outputs) - images) * torch.exp(-log_std)
        log_density = -0.5 * errors.square() - log_std - 0.5 * math.log(2 * math.pi)
        return log_density.flatten(1).sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the expected images in [0, 1] or points, in the shape of `outputs`: (batch, ...)."""
        return outputs.sigmoid() if self.is_bounded else outputs

    def sample(self, means: Tensor) -> Tensor:
        """Return random values with the expected values `means` (batch, ...), in the same shape."""
        return means + self.log_std.clamp(min=math.log(MIN_STD)).exp() * torch.randn_like(means)


def log_normalizer(logits: Tensor) -> Tensor:
    """Return log(l / tanh(l / 2)), the log normalizer of a continuous Bernoulli, in the shape of `logits`.

    Near l = 0 the quotient is 0 / 0. The Taylor series log 2 + l² / 12 replaces it there.
    """
    magnitude = logits.abs()
    is_small = magnitude < SERIES_LIMIT
    safe = torch.where(is_small, 1.0, magnitude)
    exact = safe.log() - torch.tanh(safe / 2).log()
    return torch.where(is_small, math.log(2) + magnitude.square() / 12, exact)
