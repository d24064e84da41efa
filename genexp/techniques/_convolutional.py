"""The convolutional autoencoder's networks, which more than one technique learns with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from genexp.config import require
from genexp.networks.activations import ACTIVATIONS
from genexp.networks.conv import ConvLayer, build_conv_decoder, build_conv_encoder
from genexp.techniques._autoencoder import AutoencoderConfig

STRIDES = (2, 2, 1)  # 28→13→6→4


@dataclass
class ConvAutoencoderConfig(AutoencoderConfig):
    """An autoencoder of three convolutions and one dense layer."""

    channels: list[int]  # of the three convolutions
    latent: int
    activation: str
    latent_activation: str

    def __post_init__(self) -> None:
        super().__post_init__()
        is_valid = len(self.channels) == 3 and min(self.channels) > 0
        require(is_valid, "channels", self.channels, "give three positive numbers")
        require(self.latent > 0, "latent", self.latent, "use at least 1")
        for key in ("activation", "latent_activation"):
            value = getattr(self, key)
            require(value in ACTIVATIONS, key, value, f"choose one of {', '.join(ACTIVATIONS)}")


def build_conv_autoencoder(
    shape: tuple[int, int, int], config: ConvAutoencoderConfig
) -> tuple[nn.Module, nn.Module]:
    """Return a convolutional encoder and the decoder that mirrors it."""
    layers = [
        ConvLayer(channels, kernel_size=3, stride=stride, padding=0)
        for channels, stride in zip(config.channels, STRIDES, strict=True)
    ]
    activation = config.activation
    encoder = build_conv_encoder(
        shape, layers, [config.latent], activation=activation, last_activation=config.latent_activation
    )
    decoder = build_conv_decoder(shape, layers, [config.latent], batch_norms=[False, False], activation=activation)
    return encoder, decoder
