"""Adversarial losses of discriminators and generators by name, and gradient penalties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.losses import LOSSES, register_loss

ADVERSARIAL_LOSSES = LOSSES["adversarial"]


@dataclass(frozen=True)
class AdversarialLoss(ABC):
    """Losses of discriminator and generator, as functions of the discriminator's scores (batch, ...)."""

    @abstractmethod
    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """Return the loss of the discriminator: a scalar."""

    @abstractmethod
    def generator_loss(self, fake_scores: Tensor, compute_real_scores: Callable[[], Tensor]) -> Tensor:
        """Return the loss of the generator: a scalar.

        `compute_real_scores()` returns the scores of real images (batch, ...). Only relativistic losses call it.
        """

    def real_probability(self, scores: Tensor) -> Tensor | None:
        """Return estimates of the probability that images are real, in the shape of `scores`.

        The default is None, for losses whose scores have no fixed scale.
        """
        return None


@register_loss("non_saturating", kind="adversarial")
class NonSaturatingLoss(AdversarialLoss):
    """Non-saturating loss (Goodfellow et al. 2014), with scores as logits.

    softplus(-score) is the cross-entropy of sigmoid(score) with label 1.
    """

    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()

    def generator_loss(self, fake_scores: Tensor, compute_real_scores: Callable[[], Tensor]) -> Tensor:
        return F.softplus(-fake_scores).mean()

    def real_probability(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()


@register_loss("least_squares", kind="adversarial")
class LeastSquaresLoss(AdversarialLoss):
    """Least-squares loss (Mao et al. 2017): target scores are 1 for real and 0 for generated images.

    At the optimum, scores are probabilities.
    """

    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return 0.5 * ((real_scores - 1).square().mean() + fake_scores.square().mean())

    def generator_loss(self, fake_scores: Tensor, compute_real_scores: Callable[[], Tensor]) -> Tensor:
        return 0.5 * (fake_scores - 1).square().mean()

    def real_probability(self, scores: Tensor) -> Tensor:
        return scores.clamp(0, 1)


@register_loss("hinge", kind="adversarial")
class HingeLoss(AdversarialLoss):
    """Hinge loss (Lim & Ye 2017): target scores are 1 or more for real, and -1 or less for fake."""

    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()

    def generator_loss(self, fake_scores: Tensor, compute_real_scores: Callable[[], Tensor]) -> Tensor:
        return -fake_scores.mean()

    def real_probability(self, scores: Tensor) -> Tensor:
        return ((scores + 1) / 2).clamp(0, 1)


@register_loss("wasserstein", kind="adversarial")
class WassersteinLoss(AdversarialLoss):
    """Wasserstein loss (Arjovsky et al. 2017). Scores are unbounded, so the critic needs a gradient penalty."""

    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return fake_scores.mean() - real_scores.mean()

    def generator_loss(self, fake_scores: Tensor, compute_real_scores: Callable[[], Tensor]) -> Tensor:
        return -fake_scores.mean()


@register_loss("relativistic", kind="adversarial")
class RelativisticLoss(AdversarialLoss):
    """Relativistic loss: non-saturating, on differences of real and fake scores.

    Jolicoeur-Martineau 2019, Huang et al. 2024.
    """

    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return F.softplus(fake_scores - real_scores).mean()

    def generator_loss(self, fake_scores: Tensor, compute_real_scores: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():  # scores of real images do not depend on the generator
            real_scores = compute_real_scores()
        return F.softplus(real_scores - fake_scores).mean()


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

    Half of the mean squared norm is the penalty R1 for real images (Mescheder et al. 2018), and R2 for generated
    images (Huang et al. 2024). `critic` maps images (batch, ...) to scores (batch,). Both results are
    differentiable with respect to the parameters of `critic`.
    """
    scores, pull_back, *_ = torch.func.vjp(critic, images)
    (gradients,) = pull_back(torch.ones_like(scores))
    return scores, gradients.flatten(1).square().sum(1).mean()
