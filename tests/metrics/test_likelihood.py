"""Importance-weighted likelihood and active units."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genexp.metrics.likelihood import active_units, importance_log_likelihood

NOISE_STD = 0.5


class LinearGaussian:
    """Model z ~ N(0, I), x|z ~ N(Wz + b, NOISE_STD² I) with orthogonal columns of W.

    Its marginal and its posterior have a closed form.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        basis, _ = torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64))
        self.weights = basis * torch.tensor([0.5, 1.0, 2.0])
        self.bias = torch.randn(5, dtype=torch.float64)
        self.precisions = 1 + self.weights.square().sum(0) / NOISE_STD**2

    def sample(self, count: int) -> Tensor:
        latents = torch.randn(count, 3, dtype=torch.float64)
        noise = NOISE_STD * torch.randn(count, 5, dtype=torch.float64)
        return latents @ self.weights.T + self.bias + noise

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means = (images - self.bias) @ self.weights / NOISE_STD**2 / self.precisions
        return means, -self.precisions.log().expand_as(means)

    def log_likelihood(self, images: Tensor, latents: Tensor) -> Tensor:
        errors = (images - latents @ self.weights.T - self.bias) / NOISE_STD
        return -0.5 * (errors.square() + math.log(2 * math.pi * NOISE_STD**2)).sum(1)

    def exact_log_likelihood(self, images: Tensor) -> Tensor:
        covariance = self.weights @ self.weights.T + NOISE_STD**2 * torch.eye(5, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(images)


def test_exact_posterior_gives_the_exact_likelihood() -> None:
    model = LinearGaussian()
    images = model.sample(7)
    for samples, chunk in ((1, 1), (10, 3), (10, 100)):
        estimate = importance_log_likelihood(
            model.encode, model.log_likelihood, images, num_samples=samples, chunk_size=chunk
        )
        torch.testing.assert_close(estimate, model.exact_log_likelihood(images))


def test_wrong_posterior_gives_a_lower_bound_that_tightens_with_samples() -> None:
    model = LinearGaussian()
    images = model.sample(50)

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        means, log_variances = model.encode(images)
        return means + 0.2, log_variances + 0.5

    def gap(samples: int) -> float:
        estimate = importance_log_likelihood(
            encode, model.log_likelihood, images, num_samples=samples, chunk_size=500
        )
        return float((model.exact_log_likelihood(images) - estimate).mean())

    assert gap(1) > gap(20) > 0.01
    assert gap(5000) == pytest.approx(0, abs=0.01)


def test_samples_are_evaluated_in_chunks() -> None:
    model = LinearGaussian()
    rows: list[int] = []

    def log_likelihood(images: Tensor, latents: Tensor) -> Tensor:
        rows.append(len(latents))
        return model.log_likelihood(images, latents)

    importance_log_likelihood(model.encode, log_likelihood, model.sample(4), num_samples=10, chunk_size=4)
    assert rows == [16, 16, 8]


def test_units_with_constant_mean_are_inactive() -> None:
    torch.manual_seed(0)
    means = 3 + torch.randn(1000, 4) * torch.tensor([0.0, 0.05, 0.2, 1.0])
    assert active_units(means) == 2


def test_one_sample_has_no_active_units() -> None:
    assert active_units(torch.ones(1, 3)) == 0
