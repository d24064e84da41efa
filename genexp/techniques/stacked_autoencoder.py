"""The stacked autoencoder: dense layers down to a narrow latent and back (Hinton & Salakhutdinov 2006)."""

from __future__ import annotations

from torch import nn

from genexp.technique import register
from genexp.techniques._autoencoder import Autoencoder, DenseAutoencoderConfig, build_dense_autoencoder


@register
class StackedAutoencoder(Autoencoder):
    """784→128→32→10 and back, for 28×28 images at the reference's widths."""

    Config = DenseAutoencoderConfig
    name = "stacked_autoencoder"

    def build(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        return build_dense_autoencoder(shape, self.config)
