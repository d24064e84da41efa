"""The Wasserstein GAN with gradient penalty (Gulrajani et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.losses.adversarial import gradient_penalty
from genexp.technique import Batch, Metrics, detach_metrics, register
from genexp.techniques._adversarial import BaseConvGAN, ConvGANConfig


@dataclass
class WassersteinGANConfig(ConvGANConfig):
    """conf/model/wgan_gp.yaml."""

    penalty: float
    critic_steps: int  # a generator step

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.penalty >= 0, "penalty", self.penalty, "use 0 or more")
        require(self.critic_steps > 0, "critic_steps", self.critic_steps, "use at least 1")
        # The penalty is on the slope at each image, which a norm over the batch would mix with the others'.
        is_per_sample_norm = self.discriminator_norm != "batch"
        require(
            is_per_sample_norm,
            "discriminator_norm",
            self.discriminator_norm,
            "choose one of none, layer, spectral",
        )


@register
class WassersteinGAN(BaseConvGAN):
    """A critic whose slope is held near 1: the difference of its scores measures how far apart images are."""

    Config = WassersteinGANConfig
    name = "wgan_gp"

    def __init__(self, config: WassersteinGANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.generator_every = config.critic_steps

    def discriminator_penalty(self, real: Tensor, fake: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        penalty, slope = gradient_penalty(lambda images: self.score(images, batch), real, fake)
        return self.config.penalty * penalty, detach_metrics(slope=slope)
