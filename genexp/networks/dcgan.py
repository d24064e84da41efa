"""Convolutional generators and discriminators (Radford et al. 2016), and the layouts that fit them to an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from genexp.errors import ConfigError
from genexp.networks.dropout import Dropout
from genexp.networks.gan import DISCRIMINATOR_NORMS, LEAKY_RELU_SLOPE, apply_spectral_norm

Shape = tuple[int, int, int]  # channels, height, width

FINAL_KERNEL_AND_PADDING = {
    0: (2, 1),
    1: (3, 1),
    2: (4, 1),
    3: (3, 0),
    4: (4, 0),
}  # kernel less twice padding → both


@dataclass(frozen=True)
class ConvSpec:
    """One (transposed) convolution with a square kernel."""

    channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class Layout:
    """How images of a shape are built up from 1×1, and taken down to 1×1, at a width."""

    generator_layers: Callable[
        [Shape, int], list[ConvSpec]
    ]  # transposed convolutions; the last one gives the image
    discriminator_layers: Callable[
        [Shape, int], list[ConvSpec]
    ]  # convolutions; the last one, of one channel, gives the score


def _compute_halved_sides(side: int) -> list[int]:
    """Return the sides from `side` down to at most 4 pixels, each half of the one before, rounded up."""
    sides = [side]
    while sides[-1] > 4:
        sides.append((sides[-1] + 1) // 2)
    if side < 5:
        raise ConfigError(
            f"images of {side}×{side} pixels are too small for a convolutional GAN; choose model=gan"
        )
    return sides


def _compute_kernel_size(side: int) -> int:
    """Return the kernel that, with stride 2 and padding 1, goes between a side and its half, rounded up."""
    return 4 if side % 2 == 0 else 3


def _plan_doubling_generator(shape: Shape, width: int) -> list[ConvSpec]:
    *larger, base = _compute_halved_sides(_get_square_side(shape))
    widths = [width * min(8, 2**level) for level in reversed(range(len(larger)))]
    channels = [*widths[1:], shape[0]]
    ups = zip(channels, reversed(larger), strict=True)
    return [
        ConvSpec(widths[0], base),
        *(ConvSpec(out_channels, _compute_kernel_size(side), 2, 1) for out_channels, side in ups),
    ]


def _plan_doubling_discriminator(shape: Shape, width: int) -> list[ConvSpec]:
    *larger, base = _compute_halved_sides(_get_square_side(shape))
    downs = enumerate(larger)
    return [
        *(ConvSpec(width * min(8, 2**level), _compute_kernel_size(side), 2, 1) for level, side in downs),
        ConvSpec(1, base),
    ]


def _plan_valid_generator(shape: Shape, width: int) -> list[ConvSpec]:
    """Go 1→3→7→15→28: each side is twice the one before and one, but the last, which is the image's."""
    side, sides = _compute_halved_sides(_get_square_side(shape))[0], [3]
    while 2 * sides[-1] + 2 < side:
        sides.append(2 * sides[-1] + 1)
    excess = side - 2 * (sides[-1] - 1)  # kernel less twice the padding
    if excess not in FINAL_KERNEL_AND_PADDING:
        raise ConfigError(
            f"images of {side}×{side} pixels are out of reach of the valid layout, which makes sides of "
            f"5 to 8, 12 to 16, 28 to 32 or 60 to 64; choose another size, or model.layout=doubling"
        )
    widths = [width * 2**level for level in reversed(range(len(sides)))]
    kernel, padding = FINAL_KERNEL_AND_PADDING[excess]
    return [
        ConvSpec(widths[0], 3),
        *(ConvSpec(out_channels, 3, 2) for out_channels in widths[1:]),
        ConvSpec(shape[0], kernel, 2, padding),
    ]


def _plan_valid_discriminator(shape: Shape, width: int) -> list[ConvSpec]:
    """Halve, rounding up, until a kernel of 3 with stride 2 leaves one pixel: 28→14→7→4→1."""
    *larger, _ = _compute_halved_sides(_get_square_side(shape))
    return [*(ConvSpec(width * min(2, 2**level), 3, 2, 1) for level in range(len(larger))), ConvSpec(1, 3, 2)]


LAYOUTS = {
    "doubling": Layout(
        _plan_doubling_generator, _plan_doubling_discriminator
    ),  # kernels that the stride divides: no checkerboards
    "valid": Layout(
        _plan_valid_generator, _plan_valid_discriminator
    ),  # the source's: kernels of 3 without padding
}


def build_conv_generator(latent: int, layers: Sequence[ConvSpec], *, batch_norm: bool) -> nn.Sequential:
    """Return a network from noise (batch, latent) to images in [-1, 1]: ReLU between, tanh at the end."""
    modules: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1))]
    in_channels = latent
    for layer in layers:
        modules.append(
            nn.ConvTranspose2d(
                in_channels, layer.channels, layer.kernel_size, layer.stride, layer.padding, bias=False
            )
        )
        in_channels = layer.channels
        if layer is not layers[-1]:
            modules += [*([nn.BatchNorm2d(in_channels)] if batch_norm else []), nn.ReLU()]
    return nn.Sequential(*modules, nn.Tanh())


def build_conv_discriminator(
    image_channels: int, layers: Sequence[ConvSpec], *, norm: str, dropout: float, out_channels: int = 1
) -> nn.Sequential:
    """Return a network from images in [-1, 1] to scores (batch, outputs): leaky ReLU and dropout between."""
    modules: list[nn.Module] = []
    in_channels = image_channels
    for index, layer in enumerate(layers[:-1]):
        modules.append(
            nn.Conv2d(in_channels, layer.channels, layer.kernel_size, layer.stride, layer.padding, bias=False)
        )
        in_channels = layer.channels
        if index:  # the first layer sees the images' own distribution (Radford et al. 2016)
            modules.append(DISCRIMINATOR_NORMS[norm](in_channels))
        modules.append(nn.LeakyReLU(LEAKY_RELU_SLOPE))
        if dropout:
            modules.append(Dropout(dropout))
    last = layers[-1]
    modules += [
        nn.Conv2d(in_channels, out_channels, last.kernel_size, last.stride, last.padding, bias=False),
        nn.Flatten(),
    ]
    network = nn.Sequential(*(module for module in modules if not isinstance(module, nn.Identity)))
    return apply_spectral_norm(network) if norm == "spectral" else network


def _get_square_side(shape: Shape) -> int:
    _, height, width = shape
    if height != width:
        raise ConfigError(
            f"images of {height}×{width} pixels are not square, which a DCGAN needs; "
            f"choose a data set of square images, or model=gan"
        )
    return height
