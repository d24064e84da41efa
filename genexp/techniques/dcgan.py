"""Deep convolutional GAN, DCGAN (Radford et al. 2016)."""

from __future__ import annotations

from genexp.technique import register_technique
from genexp.techniques._adversarial import BaseConvGAN, ConvGANConfig


@register_technique("dcgan")
class DCGAN(BaseConvGAN):
    """Generator of transposed convolutions from 1×1 pixel, and discriminator of strided convolutions to 1×1."""

    Config = ConvGANConfig
