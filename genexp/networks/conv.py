"""Convolutional encoders and the decoders that mirror them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from genexp.errors import ConfigError
from genexp.networks.activations import ACTIVATIONS
from genexp.networks.mlp import dense

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class ConvLayer:
    """One convolution with a square kernel; its mirror undoes its change of size."""

    channels: int
    kernel: int
    stride: int
    padding: int
    norm: bool = False  # batch normalisation behind it

    def shrink(self, size: Size) -> Size:
        """Return the size behind the convolution."""
        height, width = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in size)
        return height, width

    def lost(self, size: Size) -> Size:
        """Return the rows and columns that the mirror has to add to arrive at `size` again."""
        height, width = ((side + 2 * self.padding - self.kernel) % self.stride for side in size)
        return height, width


def sizes(size: Size, layers: Sequence[ConvLayer]) -> list[Size]:
    """Return the size before the first layer and behind each. Raises ConfigError where nothing is left."""
    result = [size]
    for layer in layers:
        result.append(layer.shrink(result[-1]))
        if min(result[-1]) < 1:
            raise ConfigError(
                f"images of {size[0]}×{size[1]} pixels are too small for this convolutional model: "
                f"nothing is left behind {len(result) - 1} layers; choose a data set with larger images, "
                f"or a dense model such as model=stacked_autoencoder"
            )
    return result


def conv_encoder(
    shape: tuple[int, int, int],
    layers: Sequence[ConvLayer],
    widths: Sequence[int],
    *,
    between: str = "relu",
    last: str = "linear",
) -> nn.Sequential:
    """Return a network from images (batch, *shape) to (batch, widths[-1])."""
    channels, *size = shape
    final = sizes((size[0], size[1]), layers)[-1]
    modules: list[nn.Module] = []
    for layer in layers:
        modules.append(nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, layer.padding))
        modules += _finish(layer.channels, norm=layer.norm, activation=between)
        channels = layer.channels
    flat = channels * final[0] * final[1]
    return nn.Sequential(*modules, nn.Flatten(), *dense([flat, *widths], between=between, last=last))


def conv_decoder(
    shape: tuple[int, int, int],
    layers: Sequence[ConvLayer],
    widths: Sequence[int],
    *,
    norms: Sequence[bool],
    between: str = "relu",
) -> nn.Sequential:
    """Return the mirror of `conv_encoder`: from (batch, widths[0]) to image logits (batch, *shape).

    `norms` says for each of its convolutions but the last whether batch normalisation follows.
    """
    before = sizes((shape[1], shape[2]), layers)
    channels, final = layers[-1].channels, before[-1]
    modules: list[nn.Module] = [
        *dense([*widths, channels * final[0] * final[1]], between=between, last=between),
        nn.Unflatten(1, (channels, *final)),
    ]
    outputs = [shape[0], *(layer.channels for layer in layers)]
    mirrored = list(zip(reversed(layers), reversed(before[:-1]), pairwise(reversed(outputs)), strict=True))
    for index, (layer, size, (inputs, output)) in enumerate(mirrored):
        modules.append(
            nn.ConvTranspose2d(
                inputs, output, layer.kernel, layer.stride, layer.padding, output_padding=layer.lost(size)
            )
        )
        if index < len(mirrored) - 1:
            modules += _finish(output, norm=norms[index], activation=between)
    return nn.Sequential(*modules)


def _finish(channels: int, *, norm: bool, activation: str) -> list[nn.Module]:
    return [*([nn.BatchNorm2d(channels)] if norm else []), ACTIVATIONS[activation]()]
