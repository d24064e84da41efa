"""KL divergence, likelihoods and reparameterization."""

from __future__ import annotations

import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from genexp.losses.reconstruction import bernoulli_log_likelihood, gaussian_kl, reparameterize


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
