"""Generative adversarial network of dense layers (Goodfellow et al. 2014)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.networks.gan import build_dense_discriminator, build_dense_generator
from genexp.technique import register_technique
from genexp.techniques._adversarial import BaseGAN, BaseGANConfig


@dataclass
class GANConfig(BaseGANConfig):
    """Keys of conf/model/gan.yaml."""

    hidden: list[int]  # units of the generator's hidden layers; the discriminator mirrors them
    generator_batch_norm: bool
    spectral_norm: bool  # of the discriminator
    dropout: float  # probability in the discriminator, in [0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.hidden) and min(self.hidden) > 0, "hidden", self.hidden, "must be positive integers")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must be a probability in [0, 1)")


@register_technique("gan")
class GAN(BaseGAN):
    """GAN of dense layers.

    In the reference preset for 28×28 images, the generator is 128→256→512→1024→784, and the discriminator
    784→1024→512→256→1.
    """

    Config = GANConfig

    def build_networks(self, spec: DataSpec) -> tuple[nn.Module, nn.Module]:
        config, shape = self.config, spec.image_shape
        generator = build_dense_generator(
            config.latent, config.hidden, shape, has_batch_norm=config.generator_batch_norm
        )
        discriminator = build_dense_discriminator(
            shape, config.hidden[::-1], dropout=config.dropout, has_spectral_norm=config.spectral_norm
        )
        return generator, discriminator
