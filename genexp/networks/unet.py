"""U-Net generator of pix2pix (Isola et al. 2017), with skip connections at each size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from genexp.errors import ConfigError
from genexp.networks.dropout import Dropout
from genexp.networks.gan import LEAKY_RELU_SLOPE
from genexp.networks.patchgan import TRANSLATION_NORMS

MAX_LEVELS = 8  # upper limit; 8 halvings reduce 256 pixels to one
MAX_WIDTH_FACTOR = 8  # upper limit of channels, as a multiple of the first width
DROPOUT_LEVELS = 3  # number of inner levels with dropout


class UNet(nn.Module):
    """U-Net from images (batch, in_channels, height, width) to (batch, out_channels, height, width) in [-1, 1]."""

    def __init__(
        self, in_channels: int, out_channels: int, size: tuple[int, int], *, width: int, norm: str, dropout: float
    ) -> None:
        """Build for images of `size`: (height, width). Raises ConfigError for a side below 4 pixels.

        Each of at most MAX_LEVELS levels halves the size, until the shorter side is 1 pixel. `width` is the number
        of channels of the first level. `norm` is a key of TRANSLATION_NORMS.
        """
        super().__init__()
        sizes = _compute_level_sizes(size)
        levels = len(sizes) - 1
        widths = [width * min(MAX_WIDTH_FACTOR, 2**level) for level in range(levels)]
        self.downs = nn.ModuleList()
        for level, (level_in_channels, level_out_channels) in enumerate(pairwise([in_channels, *widths])):
            # No norm on the first level, nor on the last, which may have a single pixel.
            is_inner = 0 < level < levels - 1
            self.downs.append(
                _build_down_block(
                    level_in_channels,
                    level_out_channels,
                    norm=norm if is_inner else "none",
                    has_activation=level > 0,
                )
            )
        self.ups = nn.ModuleList()
        for level in reversed(range(levels)):
            level_out_channels = widths[level - 1] if level else out_channels
            level_in_channels = widths[level] * (1 if level == levels - 1 else 2)  # plus the skip connection
            output_padding = sizes[level][0] % 2, sizes[level][1] % 2
            level_dropout = dropout if levels - 1 - DROPOUT_LEVELS < level and level else 0.0
            self.ups.append(
                _build_up_block(
                    level_in_channels,
                    level_out_channels,
                    output_padding,
                    norm=norm if level else None,
                    dropout=level_dropout,
                )
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs: (batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        skips: list[Tensor] = []
        features = images
        for down in self.downs:
            features = down(features)
            skips.append(features)
        features = self.ups[0](skips.pop())
        for up in list(self.ups)[1:]:
            features = up(torch.cat([features, skips.pop()], dim=1))
        return features.tanh()


def _compute_level_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (height, width) at each level, starting with the image. Raises ConfigError for small images."""
    sizes = [size]
    while min(sizes[-1]) >= 2 and len(sizes) <= MAX_LEVELS:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    if len(sizes) < 3:
        raise ConfigError(
            f"images of {size[0]}×{size[1]} pixels: too small for a U-Net. "
            f"Use at least 4×4 pixels (dataset.size=28)."
        )
    return sizes


def _build_down_block(in_channels: int, out_channels: int, *, norm: str, has_activation: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.LeakyReLU(LEAKY_RELU_SLOPE)] if has_activation else []
    layers += [
        nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=norm == "none"),
        TRANSLATION_NORMS[norm](out_channels),
    ]
    return nn.Sequential(*layers)


def _build_up_block(
    in_channels: int, out_channels: int, output_padding: tuple[int, int], *, norm: str | None, dropout: float
) -> nn.Sequential:
    """Return a level that doubles the size; `output_padding` restores the row and column lost by halving."""
    layers: list[nn.Module] = [
        nn.ReLU(),
        nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, output_padding=output_padding, bias=norm is None),
    ]
    if norm is not None:
        layers += [TRANSLATION_NORMS[norm](out_channels), Dropout(dropout)]
    return nn.Sequential(*layers)
