"""How well a latent-variable model explains images, in nats, and how much of its latent space it uses."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
LogLikelihood = Callable[[Tensor, Tensor], Tensor]


def importance_log_likelihood(
    encode: Encode, log_likelihood: LogLikelihood, images: Tensor, *, samples: int, chunk: int
) -> Tensor:
    """Return the importance-sampled log p(x) of each image in nats: (batch, ...) → (batch,).

    Burda et al. 2016, equation 8, with the prior N(0, I): a lower bound in expectation, and tighter with more
    `samples` of an image. `encode(images)` gives the posterior's means and log variances, (batch, latent) each;
    `log_likelihood(images, latents)` gives log p(x|z) in nats, (rows, ...) and (rows, latent) → (rows,).
    Memory holds `chunk` samples an image at once. Draws from torch's global generator.
    """
    means, log_variances = encode(images)
    deviations = (0.5 * log_variances).exp()
    total = means.new_full((len(images),), -math.inf)
    for start in range(0, samples, chunk):
        count = min(chunk, samples - start)
        noise = torch.randn(count, *means.shape, device=means.device, dtype=means.dtype)
        latents = means + deviations * noise  # (count, batch, latent)
        # log p(z) - log q(z|x): the normalizing constants cancel.
        prior_over_posterior = 0.5 * (noise.square() - latents.square() + log_variances).sum(-1)  # (count, batch)
        repeated = images.expand(count, *images.shape).flatten(0, 1)  # (count · batch, ...)
        conditional = log_likelihood(repeated, latents.flatten(0, 1)).reshape(count, -1)
        total = torch.logaddexp(total, torch.logsumexp(conditional + prior_over_posterior, dim=0))
    return total - math.log(samples)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Return how many latent dimensions carry information: (samples, latent) posterior means of a split → count.

    A dimension counts if the variance of its mean over the data exceeds `threshold` (Burda et al. 2016).
    """
    variances = means.cpu().double().var(dim=0, correction=min(1, len(means) - 1))  # of one sample: none
    return int((variances > threshold).sum())
