"""Stacked autoencoder of dense layers (Hinton & Salakhutdinov 2006)."""

from __future__ import annotations

from torch import nn

from genexp.technique import register_technique
from genexp.techniques._autoencoder import Autoencoder, DenseAutoencoderConfig, build_dense_autoencoder


@register_technique("stacked_autoencoder")
class StackedAutoencoder(Autoencoder):
    """Dense autoencoder.

    In the reference preset for 28×28 images, the layers are 784→128→32→10 and their mirror.
    """

    takes_points = True
    Config = DenseAutoencoderConfig

    def build_networks(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        return build_dense_autoencoder(shape, self.config)
