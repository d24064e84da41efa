"""KL divergence, likelihoods and reparameterization."""

from __future__ import annotations

import math

import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from genexp.losses.reconstruction import (
    bernoulli_log_likelihood,
    gaussian_kl,
    reparameterize,
    total_correlation,
)


def test_kl_likelihood_and_reparameterization_match_torch() -> None:
    torch.manual_seed(1)
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    torch.testing.assert_close(
        gaussian_kl(mean, log_variance), kl_divergence(posterior, Normal(torch.zeros(5, 3), torch.ones(5, 3)))
    )
    logits, binary = torch.randn(7, 1, 6, 5), torch.rand(7, 1, 6, 5).round()
    torch.testing.assert_close(
        bernoulli_log_likelihood(logits, binary), Bernoulli(logits=logits).log_prob(binary).flatten(1).sum(1)
    )
    torch.manual_seed(0)
    drawn = reparameterize(mean.expand(20_000, 5, 3), log_variance.expand(20_000, 5, 3))
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(drawn.var(0).log(), log_variance, rtol=0, atol=0.1)


def test_total_correlation_is_zero_for_independent_and_log_2_for_equal_dimensions() -> None:
    torch.manual_seed(0)
    log_variances = torch.full((400, 2), -8.0)
    signs = torch.ones(400).index_fill(0, torch.arange(0, 400, 2), -1.0)
    shuffled = signs[torch.randperm(400)]
    for means, expected in (
        (torch.stack([signs, signs], 1), math.log(2)),  # one bit of information in common
        (torch.stack([signs, shuffled], 1), 0.0),
        (torch.zeros(400, 2), 0.0),
    ):
        latents = reparameterize(means, log_variances)
        estimate = total_correlation(latents, means, log_variances, 10_000)
        assert estimate.shape == (400,)
        torch.testing.assert_close(estimate.mean(), torch.tensor(expected), rtol=0, atol=0.02)


def test_total_correlation_of_a_single_sample_is_zero() -> None:
    latent = torch.randn(1, 3)
    torch.testing.assert_close(total_correlation(latent, latent, latent, 100), torch.zeros(1))
