"""Residual encoders and decoders of convolutions without normalization (He et al. 2016, with pre-activation)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from genexp.networks.conv import ConvLayerSpec, compute_feature_map_sizes
from genexp.networks.mlp import ACTIVATIONS, build_mlp

HALVING_KERNEL = 4  # pixels; with stride 2 and padding 1 each output overlaps its neighbors equally


class PreActivationBlock(nn.Module):
    """Residual block of two 3×3 convolutions, each after an activation (pre-activation).

    The weights of the last convolution start at zero, so that the block starts as the identity. A deep network can
    then train without normalization (Zhang, Dauphin & Ma 2019).
    """

    def __init__(self, channels: int, *, activation: str) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.change = nn.Sequential(
            ACTIVATIONS[activation](),
            nn.Conv2d(channels, channels, 3, padding=1),
            ACTIVATIONS[activation](),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape: (batch, channels, height, width)."""
        return torch.as_tensor(features + self.change(features))


def build_halving_layers(channels: Sequence[int]) -> list[ConvLayerSpec]:
    """Return convolutions with these output channels, each of which halves the size."""
    return [ConvLayerSpec(count, kernel_size=HALVING_KERNEL, stride=2, padding=1) for count in channels]


def build_residual_encoder(
    shape: tuple[int, int, int],
    channels: Sequence[int],
    widths: Sequence[int],
    *,
    num_blocks: int,
    activation: str,
) -> nn.Sequential:
    """Return a network from images (batch, *shape) to features (batch, widths[-1]).

    `shape` is (channels, height, width). Each of `channels` is a convolution that halves the size, and
    `num_blocks` residual blocks. Dense layers of `widths` units follow, each with an activation. Raises
    ConfigError for images that are too small.
    """
    height, width = compute_feature_map_sizes((shape[1], shape[2]), build_halving_layers(channels))[-1]
    convolutions = build_residual_convolutions(shape, channels, num_blocks=num_blocks, activation=activation)
    dense = build_mlp([channels[-1] * height * width, *widths], activation=activation, last_activation=activation)
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


def build_residual_decoder(
    shape: tuple[int, int, int],
    channels: Sequence[int],
    widths: Sequence[int],
    *,
    num_blocks: int,
    activation: str,
) -> nn.Sequential:
    """Return the mirror of `build_residual_encoder`: codes (batch, widths[0]) → pixel outputs (batch, *shape)."""
    height, width = compute_feature_map_sizes((shape[1], shape[2]), build_halving_layers(channels))[-1]
    return nn.Sequential(
        *build_mlp([*widths, channels[-1] * height * width], activation=activation),
        nn.Unflatten(1, (channels[-1], height, width)),
        *build_residual_transposed_convolutions(shape, channels, num_blocks=num_blocks, activation=activation),
    )


def build_residual_convolutions(
    shape: tuple[int, int, int], channels: Sequence[int], *, num_blocks: int, activation: str
) -> list[nn.Module]:
    """Return the layers from images (batch, *shape) to feature maps (batch, channels[-1], height, width).

    Each of `channels` is a convolution that halves the size, and `num_blocks` residual blocks. An activation
    follows the last one. Raises ConfigError for images that are too small.
    """
    layers = build_halving_layers(channels)
    compute_feature_map_sizes((shape[1], shape[2]), layers)  # raises the error
    modules: list[nn.Module] = []
    for index, (in_channels, layer) in enumerate(zip([shape[0], *channels], layers, strict=False)):
        if index:
            modules.append(ACTIVATIONS[activation]())
        modules.append(nn.Conv2d(in_channels, layer.channels, layer.kernel_size, layer.stride, layer.padding))
        modules += [PreActivationBlock(layer.channels, activation=activation) for _ in range(num_blocks)]
    return [*modules, ACTIVATIONS[activation]()]


def build_residual_transposed_convolutions(
    shape: tuple[int, int, int], channels: Sequence[int], *, num_blocks: int, activation: str
) -> list[nn.Module]:
    """Return the mirror of `build_residual_convolutions`: feature maps → pixel outputs (batch, *shape)."""
    layers = build_halving_layers(channels)
    sizes = compute_feature_map_sizes((shape[1], shape[2]), layers)
    modules: list[nn.Module] = []
    mirrored_channels = list(pairwise([*reversed(channels), shape[0]]))
    for (in_channels, out_channels), layer, size in zip(
        mirrored_channels, reversed(layers), reversed(sizes[:-1]), strict=True
    ):
        modules += [PreActivationBlock(in_channels, activation=activation) for _ in range(num_blocks)]
        modules += [
            ACTIVATIONS[activation](),
            nn.ConvTranspose2d(
                in_channels,
                out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                output_padding=layer.output_padding(size),
            ),
        ]
    return modules
