"""Hand-written losses and training step of some techniques, on networks built by genexp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.networks.dropout import Dropout

Loss = Callable[[Tensor], Tensor]  # images (batch, channels, height, width) in [0, 1] → scalar


@dataclass(frozen=True)
class ReferencePhase:
    """A network with its own optimizer, and the loss that the optimizer minimizes."""

    network: nn.Module
    loss: Loss
    lr: float


def remove_optimizations(network: nn.Module) -> None:
    """Replace genexp's dropout by nn.Dropout and make all weights contiguous, as in hand-written code."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p).train(child.training))
    for weight in network.parameters():
        weight.data = weight.data.contiguous()


def build_autoencoder_phases(technique: Any, lr: float) -> list[ReferencePhase]:
    """Return the single phase of a plain autoencoder with a mean squared error."""

    def loss(images: Tensor) -> Tensor:
        return F.mse_loss(technique.decoder(technique.encoder(images)).sigmoid(), images)

    return [ReferencePhase(technique, loss, lr)]


def build_vae_phases(technique: Any, lr: float) -> list[ReferencePhase]:
    """Return the single phase of a variational autoencoder (Kingma & Welling 2014)."""

    def loss(images: Tensor) -> Tensor:
        hidden = technique.encoder(images)
        mean, log_variance = technique.mean(hidden), technique.log_variance(hidden)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        logits = technique.decoder(latents)
        reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return (reconstruction + kl) / len(images)

    return [ReferencePhase(technique, loss, lr)]


def build_gan_phases(technique: Any, lr: float) -> list[ReferencePhase]:
    """Return the discriminator phase and the generator phase of a GAN (Goodfellow et al. 2014)."""
    generator, discriminator, latent = technique.generator, technique.discriminator, technique.config.latent

    def discriminator_loss(images: Tensor) -> Tensor:
        real = images * 2 - 1
        fake = generator(torch.randn(len(images), latent)).detach()
        real_scores, fake_scores = discriminator(real), discriminator(fake)
        return F.binary_cross_entropy_with_logits(
            real_scores, torch.ones_like(real_scores)
        ) + F.binary_cross_entropy_with_logits(fake_scores, torch.zeros_like(fake_scores))

    def generator_loss(images: Tensor) -> Tensor:
        scores = discriminator(generator(torch.randn(len(images), latent)))
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))

    return [ReferencePhase(discriminator, discriminator_loss, lr), ReferencePhase(generator, generator_loss, lr)]


def step(phases: list[ReferencePhase], optimizers: list[torch.optim.Optimizer], images: Tensor) -> list[Tensor]:
    """Run one step of each phase on images (batch, channels, height, width). Return the losses."""
    losses = []
    for phase, optimizer in zip(phases, optimizers, strict=True):
        optimizer.zero_grad()
        loss = phase.loss(images)
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return losses
