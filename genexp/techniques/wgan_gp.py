"""Wasserstein GAN with gradient penalty, WGAN-GP (Gulrajani et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.losses.adversarial import gradient_penalty
from genexp.technique import Batch, Metrics, detach_metrics, register_technique
from genexp.techniques._adversarial import BaseConvGAN, ConvGANConfig


@dataclass
class WassersteinGANConfig(ConvGANConfig):
    """Keys of conf/model/wgan_gp.yaml."""

    penalty: float  # weight of the gradient penalty
    critic_steps: int  # per generator step

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.penalty >= 0, "penalty", self.penalty, "must be 0 or more")
        require(self.critic_steps > 0, "critic_steps", self.critic_steps, "must be at least 1")
        # The penalty depends on the gradient at each image. With batch norm, it would depend on other images too.
        is_per_sample_norm = self.discriminator_norm != "batch"
        require(
            is_per_sample_norm,
            "discriminator_norm",
            self.discriminator_norm,
            "must be none, layer or spectral",
        )


@register_technique("wgan_gp")
class WassersteinGAN(BaseConvGAN):
    """GAN with a critic whose gradient norm is kept near 1.

    The difference of the mean scores estimates the Wasserstein distance between real and generated images.
    """

    Config = WassersteinGANConfig

    def __init__(self, config: WassersteinGANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.generator_every = config.critic_steps

    def discriminator_penalty(self, real: Tensor, fake: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        penalty, gradient_norm = gradient_penalty(lambda images: self.score(images, batch), real, fake)
        return self.config.penalty * penalty, detach_metrics(slope=gradient_norm)
