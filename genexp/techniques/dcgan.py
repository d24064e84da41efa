"""The deep convolutional GAN (Radford et al. 2016)."""

from __future__ import annotations

from genexp.technique import register
from genexp.techniques._adversarial import BaseConvGAN, ConvGANConfig


@register
class DCGAN(BaseConvGAN):
    """Builds images up from 1×1 by transposed convolutions, and takes them down by strided ones."""

    Config = ConvGANConfig
    name = "dcgan"
