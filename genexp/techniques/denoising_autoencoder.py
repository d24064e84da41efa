"""Denoising autoencoder of dense layers, for Gaussian noise (Vincent et al. 2008)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genexp.config import require
from genexp.technique import register_technique
from genexp.techniques._autoencoder import DenoisingAutoencoder, DenseAutoencoderConfig, build_dense_autoencoder


@dataclass
class DenseDenoisingAutoencoderConfig(DenseAutoencoderConfig):
    """Keys of conf/model/denoising_autoencoder.yaml."""

    noise: float  # standard deviation

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.noise >= 0, "noise", self.noise, "must be 0 or more")


@register_technique("denoising_autoencoder")
class DenseDenoisingAutoencoder(DenoisingAutoencoder):
    """Network of the stacked autoencoder, trained to reconstruct an image from image + N(0, noise²)."""

    takes_points = True
    Config = DenseDenoisingAutoencoderConfig

    def build_networks(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        return build_dense_autoencoder(shape, self.config)

    def corrupt(self, images: Tensor) -> Tensor:
        return images + self.config.noise * torch.randn_like(images)
