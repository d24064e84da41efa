"""The deep convolutional GAN (Radford et al. 2016)."""

from __future__ import annotations

from genexp.technique import register
from genexp.techniques._adversarial import ConvAdversarial, ConvAdversarialConfig


@register
class Dcgan(ConvAdversarial):
    """Builds images up from 1×1 by transposed convolutions, and takes them down by strided ones."""

    Config = ConvAdversarialConfig
    name = "dcgan"
