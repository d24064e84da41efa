"""Convolutional encoders and decoders that mirror them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from genexp.errors import ConfigError
from genexp.networks.mlp import ACTIVATIONS, build_mlp

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class ConvLayerSpec:
    """Settings of one convolution with a square kernel, and of the transposed convolution that mirrors it."""

    channels: int  # of the output
    kernel_size: int  # pixels
    stride: int
    padding: int  # pixels
    has_batch_norm: bool = False  # batch normalization after the convolution

    def compute_output_size(self, size: Size) -> Size:
        """Return the output size for an input of `size`."""
        height, width = ((side + 2 * self.padding - self.kernel_size) // self.stride + 1 for side in size)
        return height, width

    def output_padding(self, size: Size) -> Size:
        """Return the output padding with which the transposed convolution restores `size`."""
        height, width = ((side + 2 * self.padding - self.kernel_size) % self.stride for side in size)
        return height, width


def compute_feature_map_sizes(size: Size, layers: Sequence[ConvLayerSpec]) -> list[Size]:
    """Return the sizes of the input and of each layer's output. Raises ConfigError if a size is below 1 pixel."""
    result = [size]
    for layer in layers:
        result.append(layer.compute_output_size(result[-1]))
        if min(result[-1]) < 1:
            raise ConfigError(
                f"images of {size[0]}×{size[1]} pixels: too small for {len(result) - 1} convolutional layers. "
                f"Use larger images (dataset.size=28), or a dense model such as model=stacked_autoencoder."
            )
    return result


def build_conv_encoder(
    shape: tuple[int, int, int],
    layers: Sequence[ConvLayerSpec],
    widths: Sequence[int],
    *,
    activation: str = "relu",
    last_activation: str = "linear",
) -> nn.Sequential:
    """Return a network from images (batch, *shape) to codes (batch, widths[-1]).

    `shape` is (channels, height, width). Dense layers of `widths` units follow the convolutions.
    """
    channels, *size = shape
    final_size = compute_feature_map_sizes((size[0], size[1]), layers)[-1]
    modules: list[nn.Module] = []
    for layer in layers:
        modules.append(nn.Conv2d(channels, layer.channels, layer.kernel_size, layer.stride, layer.padding))
        modules += _build_norm_and_activation(
            layer.channels, has_batch_norm=layer.has_batch_norm, activation=activation
        )
        channels = layer.channels
    flat = channels * final_size[0] * final_size[1]
    return nn.Sequential(
        *modules, nn.Flatten(), *build_mlp([flat, *widths], activation=activation, last_activation=last_activation)
    )


def build_conv_decoder(
    shape: tuple[int, int, int],
    layers: Sequence[ConvLayerSpec],
    widths: Sequence[int],
    *,
    batch_norms: Sequence[bool],
    activation: str = "relu",
) -> nn.Sequential:
    """Return the mirror of `build_conv_encoder`: from codes (batch, widths[0]) to image logits (batch, *shape).

    `batch_norms` has one flag for each transposed convolution but the last: True adds batch normalization.
    """
    layer_sizes = compute_feature_map_sizes((shape[1], shape[2]), layers)
    channels, final_size = layers[-1].channels, layer_sizes[-1]
    modules: list[nn.Module] = [
        *build_mlp(
            [*widths, channels * final_size[0] * final_size[1]], activation=activation, last_activation=activation
        ),
        nn.Unflatten(1, (channels, *final_size)),
    ]
    channel_counts = [shape[0], *(layer.channels for layer in layers)]
    mirrored = list(
        zip(reversed(layers), reversed(layer_sizes[:-1]), pairwise(reversed(channel_counts)), strict=True)
    )
    for index, (layer, size, (in_channels, out_channels)) in enumerate(mirrored):
        modules.append(
            nn.ConvTranspose2d(
                in_channels,
                out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                output_padding=layer.output_padding(size),
            )
        )
        if index < len(mirrored) - 1:
            modules += _build_norm_and_activation(
                out_channels, has_batch_norm=batch_norms[index], activation=activation
            )
    return nn.Sequential(*modules)


def _build_norm_and_activation(channels: int, *, has_batch_norm: bool, activation: str) -> list[nn.Module]:
    return [*([nn.BatchNorm2d(channels)] if has_batch_norm else []), ACTIVATIONS[activation]()]
