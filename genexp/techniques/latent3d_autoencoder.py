"""Autoencoder with a three-dimensional latent, for scatter plots that can be rotated."""

from __future__ import annotations

from torch import nn

from genexp.technique import register_technique
from genexp.techniques._autoencoder import Autoencoder, DenseAutoencoderConfig, build_dense_autoencoder


@register_technique("latent3d_autoencoder")
class Latent3dAutoencoder(Autoencoder):
    """Dense autoencoder with a linear latent.

    In the reference preset for 28×28 images, the layers are 784→128→64→12→3 and their mirror.
    """

    takes_points = True
    Config = DenseAutoencoderConfig
    num_examples = 5

    def build_networks(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        return build_dense_autoencoder(shape, self.config)
