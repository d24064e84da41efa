"""The convolutional autoencoder (Masci et al. 2011)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from genexp.config import require
from genexp.networks.activations import ACTIVATIONS
from genexp.networks.conv import ConvLayer, conv_decoder, conv_encoder
from genexp.technique import register
from genexp.techniques._autoencoder import Autoencoder, AutoencoderConfig


@dataclass
class ConvAutoencoderConfig(AutoencoderConfig):
    """conf/model/conv_autoencoder.yaml."""

    channels: list[int]  # of the three convolutions
    latent: int
    activation: str
    latent_activation: str

    def __post_init__(self) -> None:
        super().__post_init__()
        right = len(self.channels) == 3 and min(self.channels) > 0
        require(right, "channels", self.channels, "give three positive numbers")
        require(self.latent > 0, "latent", self.latent, "use at least 1")
        for key in ("activation", "latent_activation"):
            value = getattr(self, key)
            require(value in ACTIVATIONS, key, value, f"choose one of {', '.join(ACTIVATIONS)}")


@register
class ConvAutoencoder(Autoencoder):
    """Convolutions of stride 2, 2 and 1 (28→13→6→4), one dense layer to the latent, and the mirror of it."""

    Config = ConvAutoencoderConfig
    name = "conv_autoencoder"

    def build(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        config = self.config
        strides = (2, 2, 1)
        layers = [
            ConvLayer(c, kernel=3, stride=s, padding=0) for c, s in zip(config.channels, strides, strict=True)
        ]
        between = config.activation
        encoder = conv_encoder(shape, layers, [config.latent], between=between, last=config.latent_activation)
        decoder = conv_decoder(shape, layers, [config.latent], norms=[False, False], between=between)
        return encoder, decoder
