"""Adversarial losses of discriminators and generators by name, and gradient penalties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """Losses of discriminator and generator, as functions of the discriminator's scores (batch, ...)."""

    discriminator_loss: Callable[[Tensor, Tensor], Tensor]  # real scores, fake scores → scalar
    # Fake scores, function that computes the real scores → scalar. Only relativistic losses call the function.
    generator_loss: Callable[[Tensor, Callable[[], Tensor]], Tensor]
    # Scores → values in [0, 1], higher for more realistic images, in the same shape.
    # None if scores have no fixed scale.
    real_probability: Callable[[Tensor], Tensor] | None


def _non_saturating(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    return F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()


def _least_squares(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    return 0.5 * ((real_scores - 1).square().mean() + fake_scores.square().mean())


def _hinge(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    return F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()


def _wasserstein(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    return fake_scores.mean() - real_scores.mean()


def _relativistic(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    return F.softplus(fake_scores - real_scores).mean()


def _relativistic_generator(fake_scores: Tensor, compute_real_scores: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():  # they do not depend on the generator
        real_scores = compute_real_scores()
    return F.softplus(real_scores - fake_scores).mean()


ADVERSARIAL_LOSSES = {
    # Goodfellow et al. 2014, on logits: softplus(-score) is the cross-entropy of sigmoid(score) with label 1.
    "non_saturating": AdversarialLoss(_non_saturating, lambda fake, real: F.softplus(-fake).mean(), torch.sigmoid),
    # Mao et al. 2017: target scores are 1 for real and 0 for fake; at the optimum scores are probabilities.
    "least_squares": AdversarialLoss(
        _least_squares, lambda fake, real: 0.5 * (fake - 1).square().mean(), lambda scores: scores.clamp(0, 1)
    ),
    # Lim & Ye 2017: target scores are 1 or more for real, and -1 or less for fake.
    "hinge": AdversarialLoss(
        _hinge, lambda fake, real: -fake.mean(), lambda scores: ((scores + 1) / 2).clamp(0, 1)
    ),
    # Arjovsky et al. 2017: scores are unbounded, so the critic needs a penalty.
    "wasserstein": AdversarialLoss(_wasserstein, lambda fake, real: -fake.mean(), None),
    # Jolicoeur-Martineau 2019, Huang et al. 2024: non-saturating, on differences of real and fake scores.
    "relativistic": AdversarialLoss(_relativistic, _relativistic_generator, None),
}


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of (‖∇score‖ - 1)² and the mean gradient norm, both scalars (Gulrajani et al. 2017).

    `critic` maps images (batch, ...) to scores (batch,). Gradients are taken at random points between the images
    of `real` and `fake`, (batch, ...) each. The penalty is differentiable with respect to the parameters of
    `critic` (double backpropagation).
    """
    weights = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
    interpolates = torch.lerp(fake.detach(), real, weights)
    # torch.func.grad, not torch.autograd.grad: it also works under vmap.
    gradients = torch.func.grad(lambda images: critic(images).sum())(interpolates)
    norms = gradients.flatten(1).norm(dim=1)  # (batch,)
    return (norms - 1).square().mean(), norms.mean()


def score_with_slope(critic: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of `images` and the mean squared norm of their gradients: (batch,) and a scalar.

    Half of the latter is the penalty R1 on real images (Mescheder et al. 2018) and R2 on fake ones (Huang et al.
    2024). `critic` maps images (batch, ...) to scores (batch,). Both results are differentiable with respect to
    its parameters.
    """
    scores, pull_back, *_ = torch.func.vjp(critic, images)
    (gradients,) = pull_back(torch.ones_like(scores))
    return scores, gradients.flatten(1).square().sum(1).mean()
