"""Convolutional denoising autoencoder with batch normalization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genexp.config import require
from genexp.networks.conv import ConvLayerSpec, build_conv_decoder, build_conv_encoder
from genexp.networks.mlp import ACTIVATIONS
from genexp.technique import register_technique
from genexp.techniques._autoencoder import AutoencoderConfig, DenoisingAutoencoder


@dataclass
class ConvDenoisingAutoencoderConfig(AutoencoderConfig):
    """Keys of conf/model/conv_denoising_autoencoder.yaml."""

    channels: list[int]  # of the three convolutions
    hidden: int  # units of the dense layer before the latent
    latent: int  # units
    activation: str  # key of ACTIVATIONS
    noise: float  # standard deviation
    target: str  # target of the loss: "clean" or "noisy" images

    @property
    def latent_size(self) -> int:
        return self.latent

    def __post_init__(self) -> None:
        super().__post_init__()
        is_valid = len(self.channels) == 3 and min(self.channels) > 0
        require(is_valid, "channels", self.channels, "must be three positive integers")
        require(self.hidden > 0, "hidden", self.hidden, "must be at least 1")
        require(self.latent > 0, "latent", self.latent, "must be at least 1")
        choices = ", ".join(ACTIVATIONS)
        require(self.activation in ACTIVATIONS, "activation", self.activation, f"must be one of {choices}")
        require(self.noise >= 0, "noise", self.noise, "must be 0 or more")
        require(self.target in ("clean", "noisy"), "target", self.target, "must be clean or noisy")


@register_technique("conv_denoising_autoencoder")
class ConvDenoisingAutoencoder(DenoisingAutoencoder):
    """Three convolutions of stride 2 (28→14→7→3 pixels), two dense layers to the latent; mirrored decoder."""

    Config = ConvDenoisingAutoencoderConfig
    num_examples = 5

    def build_networks(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        config = self.config
        layers = [
            ConvLayerSpec(config.channels[0], kernel_size=3, stride=2, padding=1),
            ConvLayerSpec(config.channels[1], kernel_size=3, stride=2, padding=1, has_batch_norm=True),
            ConvLayerSpec(config.channels[2], kernel_size=3, stride=2, padding=0),
        ]
        widths, activation = [config.hidden, config.latent], config.activation
        encoder = build_conv_encoder(shape, layers, widths, activation=activation)
        decoder = build_conv_decoder(shape, layers, widths[::-1], batch_norms=[True, True], activation=activation)
        return encoder, decoder

    def corrupt(self, images: Tensor) -> Tensor:
        return (images + self.config.noise * torch.randn_like(images)).clamp(0, 1)

    def select_target(self, images: Tensor, corrupted: Tensor) -> Tensor:
        return corrupted if self.config.target == "noisy" else images
