"""Convolutional generators and discriminators (Radford et al. 2016), and the layouts that fit them to an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from genexp.errors import ConfigError
from genexp.networks.dropout import Dropout
from genexp.networks.gan import NORMS, SLOPE, bounded

Shape = tuple[int, int, int]  # channels, height, width

LAST_KERNELS = {0: (2, 1), 1: (3, 1), 2: (4, 1), 3: (3, 0), 4: (4, 0)}  # kernel less twice padding → both


@dataclass(frozen=True)
class Conv:
    """One (transposed) convolution with a square kernel."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class Layout:
    """How images of a shape are built up from 1×1, and taken down to 1×1, at a width."""

    up: Callable[[Shape, int], list[Conv]]  # transposed convolutions; the last one gives the image
    down: Callable[[Shape, int], list[Conv]]  # convolutions; the last one, of one channel, gives the score


def _halvings(side: int) -> list[int]:
    """Return the sides from `side` down to at most 4 pixels, each half of the one before, rounded up."""
    sides = [side]
    while sides[-1] > 4:
        sides.append((sides[-1] + 1) // 2)
    if side < 5:
        raise ConfigError(
            f"images of {side}×{side} pixels are too small for a convolutional GAN; choose model=gan"
        )
    return sides


def _kernel(larger: int) -> int:
    """Return the kernel that, with stride 2 and padding 1, goes between a side and its half, rounded up."""
    return 4 if larger % 2 == 0 else 3


def _doubling_up(shape: Shape, width: int) -> list[Conv]:
    *larger, base = _halvings(_side(shape))
    widths = [width * min(8, 2**level) for level in reversed(range(len(larger)))]
    channels = [*widths[1:], shape[0]]
    ups = zip(channels, reversed(larger), strict=True)
    return [Conv(widths[0], base), *(Conv(each, _kernel(side), 2, 1) for each, side in ups)]


def _doubling_down(shape: Shape, width: int) -> list[Conv]:
    *larger, base = _halvings(_side(shape))
    downs = enumerate(larger)
    return [*(Conv(width * min(8, 2**level), _kernel(side), 2, 1) for level, side in downs), Conv(1, base)]


def _valid_up(shape: Shape, width: int) -> list[Conv]:
    """Go 1→3→7→15→28: each side is twice the one before and one, but the last, which is the image's."""
    side, sides = _halvings(_side(shape))[0], [3]
    while 2 * sides[-1] + 2 < side:
        sides.append(2 * sides[-1] + 1)
    excess = side - 2 * (sides[-1] - 1)  # kernel less twice the padding
    if excess not in LAST_KERNELS:
        raise ConfigError(
            f"images of {side}×{side} pixels are out of reach of the valid layout, which makes sides of "
            f"5 to 8, 12 to 16, 28 to 32 or 60 to 64; choose another size, or model.layout=doubling"
        )
    widths = [width * 2**level for level in reversed(range(len(sides)))]
    kernel, padding = LAST_KERNELS[excess]
    return [Conv(widths[0], 3), *(Conv(each, 3, 2) for each in widths[1:]), Conv(shape[0], kernel, 2, padding)]


def _valid_down(shape: Shape, width: int) -> list[Conv]:
    """Halve, rounding up, until a kernel of 3 with stride 2 leaves one pixel: 28→14→7→4→1."""
    *larger, _ = _halvings(_side(shape))
    return [*(Conv(width * min(2, 2**level), 3, 2, 1) for level in range(len(larger))), Conv(1, 3, 2)]


LAYOUTS = {
    "doubling": Layout(_doubling_up, _doubling_down),  # kernels that the stride divides: no checkerboards
    "valid": Layout(_valid_up, _valid_down),  # the source's: kernels of 3 without padding
}


def conv_generator(latent: int, layers: Sequence[Conv], *, batch_norm: bool) -> nn.Sequential:
    """Return a network from noise (batch, latent) to images in [-1, 1]: ReLU between, tanh at the end."""
    modules: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1))]
    inputs = latent
    for layer in layers:
        modules.append(
            nn.ConvTranspose2d(inputs, layer.channels, layer.kernel, layer.stride, layer.padding, bias=False)
        )
        inputs = layer.channels
        if layer is not layers[-1]:
            modules += [*([nn.BatchNorm2d(inputs)] if batch_norm else []), nn.ReLU()]
    return nn.Sequential(*modules, nn.Tanh())


def conv_discriminator(
    image_channels: int, layers: Sequence[Conv], *, norm: str, dropout: float, outputs: int = 1
) -> nn.Sequential:
    """Return a network from images in [-1, 1] to scores (batch, outputs): leaky ReLU and dropout between."""
    modules: list[nn.Module] = []
    inputs = image_channels
    for index, layer in enumerate(layers[:-1]):
        modules.append(nn.Conv2d(inputs, layer.channels, layer.kernel, layer.stride, layer.padding, bias=False))
        inputs = layer.channels
        if index:  # the first layer sees the images' own distribution (Radford et al. 2016)
            modules.append(NORMS[norm](inputs))
        modules.append(nn.LeakyReLU(SLOPE))
        if dropout:
            modules.append(Dropout(dropout))
    last = layers[-1]
    modules += [nn.Conv2d(inputs, outputs, last.kernel, last.stride, last.padding, bias=False), nn.Flatten()]
    network = nn.Sequential(*(module for module in modules if not isinstance(module, nn.Identity)))
    return bounded(network) if norm == "spectral" else network


def _side(shape: Shape) -> int:
    _, height, width = shape
    if height != width:
        raise ConfigError(
            f"images of {height}×{width} pixels are not square, which a DCGAN needs; "
            f"choose a data set of square images, or model=gan"
        )
    return height
