"""Importance-sampled log likelihood and active units of a latent-variable model (Burda et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

EncodeFn = Callable[[Tensor], tuple[Tensor, Tensor]]  # images → means and log variances of the posterior
LogLikelihoodFn = Callable[[Tensor, Tensor], Tensor]  # images, latents → log p(x|z) in nats


def importance_log_likelihood(
    encode: EncodeFn, log_likelihood: LogLikelihoodFn, images: Tensor, *, num_samples: int, chunk_size: int
) -> Tensor:
    """Return the importance-sampled log p(x) of each image in nats: (batch, ...) → (batch,).

    This is equation 8 of Burda et al. 2016 with the prior N(0, I). In expectation it is a lower bound of log p(x).
    More samples (`num_samples` per image) give a tighter bound. `encode(images)` returns means and log variances
    of the posterior, (batch, latent) each. `log_likelihood(images, latents)` returns log p(x|z) in nats:
    (rows, ...) and (rows, latent) → (rows,). At most `chunk_size` samples per image are in memory at once. Draws
    from torch's global generator.
    """
    means, log_variances = encode(images)
    stds = (0.5 * log_variances).exp()
    total = means.new_full((len(images),), -math.inf)
    for start in range(0, num_samples, chunk_size):
        count = min(chunk_size, num_samples - start)
        noise = torch.randn(count, *means.shape, device=means.device, dtype=means.dtype)
        latents = means + stds * noise  # (count, batch, latent)
        # log p(z) - log q(z|x): the normalizing constants cancel.
        log_prior_ratio = 0.5 * (noise.square() - latents.square() + log_variances).sum(-1)  # (count, batch)
        repeated = images.expand(count, *images.shape).flatten(0, 1)  # (count · batch, ...)
        conditional_log_likelihood = log_likelihood(repeated, latents.flatten(0, 1)).reshape(count, -1)
        total = torch.logaddexp(total, torch.logsumexp(conditional_log_likelihood + log_prior_ratio, dim=0))
    return total - math.log(num_samples)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Return the number of latent units that carry information, from posterior means (samples, latent).

    A unit is active if the variance of its mean over the data exceeds `threshold` (Burda et al. 2016).
    """
    variances = means.cpu().double().var(dim=0, correction=min(1, len(means) - 1))  # one sample has variance 0
    return int((variances > threshold).sum())
