"""An autoencoder with three latent numbers, to be looked at: its latents make a scatter one can turn."""

from __future__ import annotations

from torch import nn

from genexp.technique import register
from genexp.techniques._autoencoder import Autoencoder, DenseAutoencoderConfig, build_dense_autoencoder


@register
class Latent3dAutoencoder(Autoencoder):
    """784→128→64→12→3 and back, for 28×28 images at the reference's widths; the latent is linear."""

    Config = DenseAutoencoderConfig
    name = "latent3d_autoencoder"
    example_count = 5

    def build(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        return build_dense_autoencoder(shape, self.config)
