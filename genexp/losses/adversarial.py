"""What the two players of a GAN minimize, by name, and the penalties that keep a discriminator smooth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """A game: what each player minimizes, as functions of the discriminator's scores (batch, ...)."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # real scores, fake scores → scalar
    generator: Callable[[Tensor], Tensor]  # fake scores → scalar
    # Scores → the probability of being real that the discriminator gives each; None where it gives none.
    real_probability: Callable[[Tensor], Tensor] | None


def _non_saturating(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _least_squares(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


ADVERSARIAL_LOSSES = {
    # Goodfellow et al. 2014, on logits: softplus(-score) is the cross-entropy of sigmoid(score) with label 1.
    "non_saturating": AdversarialLoss(_non_saturating, lambda fake: F.softplus(-fake).mean(), torch.sigmoid),
    # Mao et al. 2017: scores aim at 1 for real and 0 for fake, and are probabilities at the optimum.
    "least_squares": AdversarialLoss(
        _least_squares, lambda fake: 0.5 * (fake - 1).square().mean(), lambda scores: scores.clamp(0, 1)
    ),
    # Lim & Ye 2017: scores aim beyond 1 for real and below -1 for fake.
    "hinge": AdversarialLoss(_hinge, lambda fake: -fake.mean(), lambda scores: ((scores + 1) / 2).clamp(0, 1)),
    # Arjovsky et al. 2017: scores are unbounded, so the critic needs a penalty.
    "wasserstein": AdversarialLoss(_wasserstein, lambda fake: -fake.mean(), None),
}


def gradient_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of (‖∇score‖ - 1)² between real and fake images, and the mean norm (Gulrajani et al. 2017).

    The penalty can be back-propagated into the scorer: its gradient is one through a gradient.
    """
    mix = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
    interpolates = torch.lerp(fake.detach(), real, mix)
    gradients = torch.func.grad(lambda images: score(images).sum())(
        interpolates
    )  # a function of functions, as vmap wants it
    norms = gradients.flatten(1).norm(dim=1)  # (batch,)
    return (norms - 1).square().mean(), norms.mean()
