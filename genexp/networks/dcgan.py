"""Convolutional generators and discriminators of DCGAN (Radford et al. 2016), sized to the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from genexp.errors import ConfigError
from genexp.networks.dropout import Dropout
from genexp.networks.gan import DISCRIMINATOR_NORMS, LEAKY_RELU_SLOPE, apply_spectral_norm

ImageShape = tuple[int, int, int]  # channels, height, width

# kernel_size - 2 * padding → (kernel_size, padding), both in pixels
FINAL_KERNEL_AND_PADDING = {0: (2, 1), 1: (3, 1), 2: (4, 1), 3: (3, 0), 4: (4, 0)}


@dataclass(frozen=True)
class ConvSpec:
    """Settings of one convolution or transposed convolution with a square kernel."""

    channels: int  # of the output
    kernel_size: int  # pixels
    stride: int = 1
    padding: int = 0  # pixels


@dataclass(frozen=True)
class ConvGANLayout:
    """Rules for the layers of generator and discriminator, given the shape of the images and the width."""

    # (shape, width) → transposed convolutions from 1×1 to the image
    plan_generator: Callable[[ImageShape, int], list[ConvSpec]]
    # (shape, width) → convolutions from the image to 1×1; the last one has one channel: the score
    plan_discriminator: Callable[[ImageShape, int], list[ConvSpec]]


def _compute_halved_sides(side: int) -> list[int]:
    """Return sides in pixels: `side`, then repeated halves, rounded up, until at most 4 pixels are left.

    Raises ConfigError for a side below 5 pixels.
    """
    sides = [side]
    while sides[-1] > 4:
        sides.append((sides[-1] + 1) // 2)
    if side < 5:
        raise ConfigError(
            f"images of {side}×{side} pixels: too small for a convolutional GAN. "
            f"Use dataset.size=28, or model=gan."
        )
    return sides


def _compute_kernel_size(side: int) -> int:
    """Return the kernel size that maps between `side` and its half, rounded up, at stride 2 and padding 1."""
    return 4 if side % 2 == 0 else 3


def _plan_doubling_generator(shape: ImageShape, width: int) -> list[ConvSpec]:
    *sides, final_side = _compute_halved_sides(_get_square_side(shape))
    widths = [width * min(8, 2**level) for level in reversed(range(len(sides)))]
    channels = [*widths[1:], shape[0]]
    ups = zip(channels, reversed(sides), strict=True)
    return [
        ConvSpec(widths[0], final_side),
        *(ConvSpec(out_channels, _compute_kernel_size(side), 2, 1) for out_channels, side in ups),
    ]


def _plan_doubling_discriminator(shape: ImageShape, width: int) -> list[ConvSpec]:
    *sides, final_side = _compute_halved_sides(_get_square_side(shape))
    downs = enumerate(sides)
    return [
        *(ConvSpec(width * min(8, 2**level), _compute_kernel_size(side), 2, 1) for level, side in downs),
        ConvSpec(1, final_side),
    ]


def _plan_valid_generator(shape: ImageShape, width: int) -> list[ConvSpec]:
    """Return transposed convolutions with sides such as 1→3→7→15→28 pixels.

    Each side is 2n + 1 for the previous side n; the last one is that of the image. Raises ConfigError for sides
    that no last layer can reach.
    """
    side, sides = _compute_halved_sides(_get_square_side(shape))[0], [3]
    while 2 * sides[-1] + 2 < side:
        sides.append(2 * sides[-1] + 1)
    excess = side - 2 * (sides[-1] - 1)  # kernel_size - 2 * padding of the last layer
    if excess not in FINAL_KERNEL_AND_PADDING:
        raise ConfigError(
            f"model.layout=valid: images of {side}×{side} pixels must have sides of 5 to 8, 12 to 16, 28 to 32 or "
            f"60 to 64. Use dataset.size=28, or model.layout=doubling."
        )
    widths = [width * 2**level for level in reversed(range(len(sides)))]
    kernel, padding = FINAL_KERNEL_AND_PADDING[excess]
    return [
        ConvSpec(widths[0], 3),
        *(ConvSpec(out_channels, 3, 2) for out_channels in widths[1:]),
        ConvSpec(shape[0], kernel, 2, padding),
    ]


def _plan_valid_discriminator(shape: ImageShape, width: int) -> list[ConvSpec]:
    """Return convolutions that halve the side, rounding up, such as 28→14→7→4→1 pixels.

    The last one has kernel 3 and stride 2.
    """
    *larger, _ = _compute_halved_sides(_get_square_side(shape))
    return [*(ConvSpec(width * min(2, 2**level), 3, 2, 1) for level in range(len(larger))), ConvSpec(1, 3, 2)]


LAYOUTS = {
    # Kernel 4 at stride 2 wherever the side is even: a kernel size divisible by the stride avoids checkerboards.
    "doubling": ConvGANLayout(_plan_doubling_generator, _plan_doubling_discriminator),
    # The layers of the tutorial: kernel 3 without padding.
    "valid": ConvGANLayout(_plan_valid_generator, _plan_valid_discriminator),
}


def build_conv_generator(latent: int, layers: Sequence[ConvSpec], *, has_batch_norm: bool) -> nn.Sequential:
    """Return a network from noise (batch, latent) to images (batch, channels, height, width) in [-1, 1].

    ReLU follows each layer but the last; tanh follows the last one.
    """
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
            modules += [*([nn.BatchNorm2d(in_channels)] if has_batch_norm else []), nn.ReLU()]
    return nn.Sequential(*modules, nn.Tanh())


def build_conv_discriminator(
    image_channels: int, layers: Sequence[ConvSpec], *, norm: str, dropout: float, out_channels: int = 1
) -> nn.Sequential:
    """Return a network from images (batch, image_channels, height, width) to scores (batch, out_channels).

    Images are in [-1, 1]. `norm` is a key of DISCRIMINATOR_NORMS. Leaky ReLU and dropout follow each layer but
    the last, which has `out_channels` instead of its own number of channels.
    """
    modules: list[nn.Module] = []
    in_channels = image_channels
    for index, layer in enumerate(layers[:-1]):
        modules.append(
            nn.Conv2d(in_channels, layer.channels, layer.kernel_size, layer.stride, layer.padding, bias=False)
        )
        in_channels = layer.channels
        if index:  # no norm on the first layer (Radford et al. 2016)
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


def _get_square_side(shape: ImageShape) -> int:
    _, height, width = shape
    if height != width:
        raise ConfigError(
            f"images of {height}×{width} pixels: must be square for a DCGAN. "
            f"Use dataset.size=28 (any size), or model=gan."
        )
    return height
