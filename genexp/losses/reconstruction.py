"""Reconstruction losses by name, and the terms of the evidence lower bound (Kingma & Welling 2014).

The total correlation is that of Chen et al. 2018.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.losses import LOSSES, register_loss
from genexp.sharding import gather_rows, local_rows

RECONSTRUCTION_LOSSES = LOSSES["reconstruction"]  # all return a scalar, averaged over pixels and batch


@register_loss("mse", kind="reconstruction")
def mse_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of sigmoid(logits) and a target in [0, 1]: (batch, ...) each → scalar."""
    return F.mse_loss(logits.sigmoid(), target)


@register_loss("bce", kind="reconstruction")
def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of sigmoid(logits) and a target in [0, 1]: (batch, ...) each → scalar."""
    return F.binary_cross_entropy_with_logits(logits, target)


@register_loss("l1", kind="reconstruction")
def l1_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error of sigmoid(logits) and a target in [0, 1]: (batch, ...) each → scalar."""
    return F.l1_loss(logits.sigmoid(), target)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) ‖ N(0, I)) in nats for each latent dimension: (batch, latent).

    `mean` and `log_variance` are (batch, latent) each. Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def bernoulli_log_likelihood(logits: Tensor, images: Tensor) -> Tensor:
    """Return log p(image | logits) in nats, summed over all axes but the first: (batch,).

    `logits` and `images` are (batch, ...) each. For images in [0, 1] the result is the
    negative cross-entropy, which is a log-likelihood only if the images are binary.
    """
    return -F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)


def reparameterize(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return a differentiable sample of N(mean, variance): (batch, latent) each → (batch, latent).

    Kingma & Welling 2014, section 2.4.
    """
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def total_correlation(latents: Tensor, means: Tensor, log_variances: Tensor, train_size: int) -> Tensor:
    """Return the estimate of log q(z) - Σ log q(z_d) in nats at each latent: (batch, latent) each → (batch,).

    The mean is the total correlation of the aggregated posterior over `train_size` training samples. Row i of
    `latents` was drawn from the posterior with row i of `means` and `log_variances`. The estimator is minibatch
    stratified sampling (Chen et al. 2018, appendix C.2). A batch of one sample gives 0.
    """
    all_means, all_log_variances = gather_rows(means), gather_rows(log_variances)
    distances = (latents[:, None] - all_means) * torch.exp(-0.5 * all_log_variances)
    log_densities = -0.5 * (distances.square() + all_log_variances + math.log(2 * math.pi))  # (batch, all, latent)
    log_weights = local_rows(_stratified_weights(len(all_means), train_size).log()).to(latents)  # (batch, all)
    joint = torch.logsumexp(log_densities.sum(2) + log_weights, dim=1)
    marginals = torch.logsumexp(log_densities + log_weights[..., None], dim=1)  # (batch, latent)
    return joint - marginals.sum(1)


def _stratified_weights(batch_size: int, train_size: int) -> Tensor:
    """Return the importance weights of minibatch stratified sampling: (batch, batch), with row sums of 1.

    The posterior of the sample itself has weight 1 / `train_size`. The next posterior in the batch also has the
    weight of all posteriors outside the batch.
    """
    others = batch_size - 1
    if not others:
        return torch.ones(1, 1)
    weights = torch.full((batch_size, batch_size), 1 / others)
    indices = torch.arange(batch_size)
    weights[indices, indices] = 1 / train_size
    weights[indices, (indices + 1) % batch_size] = (train_size - others) / (train_size * others)
    return weights
