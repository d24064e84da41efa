"""Reconstruction losses by name, and the terms of the evidence lower bound (Kingma & Welling 2014)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# (logits, target), (batch, ...) each → scalar: loss between sigmoid(logits) and a target in [0, 1].
# It is averaged over pixels and batch.
RECONSTRUCTION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda logits, target: F.mse_loss(logits.sigmoid(), target),
    "bce": F.binary_cross_entropy_with_logits,
    "l1": lambda logits, target: F.l1_loss(logits.sigmoid(), target),
}


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) ‖ N(0, I)) in nats for each latent dimension: (batch, latent).

    `mean` and `log_variance` are (batch, latent) each. Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def bernoulli_log_likelihood(logits: Tensor, images: Tensor) -> Tensor:
    """Return log p(image | logits) in nats, summed over all axes but the first: (batch,).

    `logits` and `images` are (batch, ...) each. For images in [0, 1] this is the negative cross-entropy. It is a
    likelihood only if the images are binary.
    """
    return -F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)


def reparameterize(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return a differentiable sample of N(mean, variance), in their shape (Kingma & Welling 2014, section 2.4)."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
