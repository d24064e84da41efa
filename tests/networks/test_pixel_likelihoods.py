"""Pixel likelihoods against torch and against numerical integrals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, ContinuousBernoulli, Normal

from genexp.networks.pixel_likelihoods import PIXEL_LIKELIHOODS, GaussianLikelihood, log_normalizer

LOGITS = torch.tensor([-30.0, -4.0, -0.5, -0.0301, -0.0299, -1e-4, 0.0, 1e-4, 0.0299, 0.0301, 0.5, 4.0, 30.0])


@pytest.mark.parametrize("name", PIXEL_LIKELIHOODS.list_names())
def test_likelihoods_match_torch(name: str) -> None:
    torch.manual_seed(0)
    outputs, images = 3 * torch.randn(5, 1, 4, 3), torch.rand(5, 1, 4, 3)
    if name == "bernoulli":
        images = images.round()
    distributions = {
        "bernoulli": Bernoulli(logits=outputs),
        "continuous_bernoulli": ContinuousBernoulli(logits=outputs),
        "gaussian": Normal(outputs.sigmoid(), 0.1),
    }
    expected = distributions[name]
    likelihood = PIXEL_LIKELIHOODS.find(name)()
    torch.testing.assert_close(
        likelihood.log_prob(outputs, images), expected.log_prob(images).flatten(1).sum(1), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(likelihood.mean(outputs), expected.mean, rtol=1e-4, atol=1e-5)


def test_continuous_bernoulli_integrates_to_one_and_has_finite_gradients() -> None:
    pixels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    logits = LOGITS.double()[:, None].requires_grad_()
    log_density = pixels * logits - torch.nn.functional.softplus(logits) + log_normalizer(logits)
    density = log_density.exp()
    torch.testing.assert_close(density.mean(1), torch.ones(len(LOGITS), dtype=torch.float64), rtol=1e-4, atol=0)
    means = PIXEL_LIKELIHOODS.find("continuous_bernoulli")().mean(logits)[:, 0]
    torch.testing.assert_close((density * pixels).mean(1), means, rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(log_normalizer(logits).sum() + means.sum(), logits)
    assert gradient.isfinite().all()


def test_the_standard_deviation_of_the_gaussian_is_learned_and_bounded() -> None:
    likelihood = GaussianLikelihood()
    images = torch.full((2, 1, 2, 2), 0.5)
    likelihood.log_prob(torch.zeros_like(images), images).mean().backward()
    assert likelihood.log_std.grad is not None
    assert likelihood.log_std.grad < 0  # errors of 0 call for a smaller standard deviation
    with torch.no_grad():
        likelihood.log_std.fill_(-50.0)
    bound = -4 * (math.log(1e-3) + 0.5 * math.log(2 * math.pi))
    assert likelihood.log_prob(torch.zeros_like(images), images)[0].item() == pytest.approx(bound)
