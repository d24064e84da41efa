"""Adversarial losses and the gradient penalty."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from genexp.losses.adversarial import ADVERSARIAL_LOSSES, gradient_penalty, score_with_slope


def test_non_saturating_loss_is_the_cross_entropy_of_probabilities() -> None:
    real, fake = torch.randn(6), torch.randn(6)
    adversarial_loss = ADVERSARIAL_LOSSES.find("non_saturating")()
    ones, zeros = torch.ones(6), torch.zeros(6)
    bce = F.binary_cross_entropy
    torch.testing.assert_close(
        adversarial_loss.discriminator_loss(real, fake), bce(real.sigmoid(), ones) + bce(fake.sigmoid(), zeros)
    )
    torch.testing.assert_close(adversarial_loss.generator_loss(fake, lambda: real), bce(fake.sigmoid(), ones))


@pytest.mark.parametrize(
    ("loss", "discriminator", "generator"),
    [
        ("least_squares", 0.125 + 2.0, 0.5),
        ("hinge", 0.5 + 3.0, -2.0),
        ("wasserstein", 1.5, -2.0),
        ("relativistic", math.log1p(math.exp(1.5)), math.log1p(math.exp(-1.5))),
    ],
)
def test_losses_match_their_papers(loss: str, discriminator: float, generator: float) -> None:
    real, fake = torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0])
    adversarial_loss = ADVERSARIAL_LOSSES.find(loss)()
    assert adversarial_loss.discriminator_loss(real, fake).item() == pytest.approx(discriminator)
    assert adversarial_loss.generator_loss(fake, lambda: real).item() == pytest.approx(generator)


def test_gradient_penalty_measures_the_slope_and_is_differentiable() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)  # the gradient norm is 5 everywhere
    penalty, slope = gradient_penalty(lambda images: images @ weight, torch.randn(4, 2), torch.randn(4, 2))
    assert slope.item() == pytest.approx(5)
    assert penalty.item() == pytest.approx(16)
    penalty.backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * 4 * torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("loss", sorted(set(ADVERSARIAL_LOSSES.list_names()) - {"relativistic"}))
def test_only_the_relativistic_generator_needs_real_scores(loss: str) -> None:
    def fail() -> torch.Tensor:
        raise AssertionError("real scores cost a pass of the discriminator")

    ADVERSARIAL_LOSSES.find(loss)().generator_loss(torch.randn(4), fail)


def test_squared_slope_and_scores_are_differentiable() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    images = torch.randn(4, 2)
    scores, slope = score_with_slope(lambda images: images.square() @ weight, images)
    torch.testing.assert_close(scores, images.square() @ weight)
    torch.testing.assert_close(slope, (2 * images * weight).square().sum(1).mean())
    (scores.sum() + slope).backward()
    assert weight.grad is not None
    expected = images.square().sum(0) + 8 * (images.square() * weight.detach()).mean(0)
    torch.testing.assert_close(weight.grad, expected)
