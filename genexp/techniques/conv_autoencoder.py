"""Convolutional autoencoder (Masci et al. 2011)."""

from __future__ import annotations

from torch import nn

from genexp.technique import register_technique
from genexp.techniques._autoencoder import Autoencoder, ConvAutoencoderConfig, build_conv_autoencoder


@register_technique("conv_autoencoder")
class ConvAutoencoder(Autoencoder):
    """Convolutions of stride 2, 2 and 1 (28→13→6→4 pixels), a dense layer to the latent; mirrored decoder."""

    Config = ConvAutoencoderConfig

    def build_networks(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        return build_conv_autoencoder(shape, self.config)
