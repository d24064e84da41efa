"""The U-Net of pix2pix (Isola et al. 2017): down to a point and up again, with a way across at each size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from genexp.errors import ConfigError
from genexp.networks.dropout import Dropout
from genexp.networks.gan import SLOPE
from genexp.networks.patchgan import NORMS

LEVELS = 8  # at most; 256 pixels become one
WIDEST = 8  # times the first width
DROPOUTS = 3  # innermost levels that drop channels


class UNet(nn.Module):
    """From images (batch, inputs, height, width) to images (batch, outputs, height, width), all in [-1, 1]."""

    def __init__(
        self, inputs: int, outputs: int, size: tuple[int, int], *, width: int, norm: str, dropout: float
    ) -> None:
        """`size` is (height, width), at least 4 pixels each: each level halves it, down to 1 or 2 pixels."""
        super().__init__()
        sizes = _halved(size)
        levels = len(sizes) - 1
        widths = [width * min(WIDEST, 2**level) for level in range(levels)]
        self.downs = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise([inputs, *widths])):
            # The first level sees the pixels' own distribution; the last may have but one pixel to normalise.
            inner = 0 < level < levels - 1
            self.downs.append(_down(before, after, norm=norm if inner else "none", active=level > 0))
        self.ups = nn.ModuleList()
        for level in reversed(range(levels)):
            after = widths[level - 1] if level else outputs
            before = widths[level] * (1 if level == levels - 1 else 2)  # with what comes across
            odd = sizes[level][0] % 2, sizes[level][1] % 2
            drops = dropout if levels - 1 - DROPOUTS < level and level else 0.0
            self.ups.append(_up(before, after, odd, norm=norm if level else None, dropout=drops))

    def forward(self, images: Tensor) -> Tensor:
        """Return the translated images."""
        across: list[Tensor] = []
        features = images
        for down in self.downs:
            features = down(features)
            across.append(features)
        features = self.ups[0](across.pop())
        for up in list(self.ups)[1:]:
            features = up(torch.cat([features, across.pop()], dim=1))
        return features.tanh()


def _halved(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the size at each level, the image's own first."""
    sizes = [size]
    while min(sizes[-1]) >= 2 and len(sizes) <= LEVELS:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    if len(sizes) < 3:
        raise ConfigError(f"images of {size[0]}×{size[1]} pixels are too small for a U-Net; use 4 or more a side")
    return sizes


def _down(before: int, after: int, *, norm: str, active: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.LeakyReLU(SLOPE)] if active else []
    layers += [nn.Conv2d(before, after, 4, 2, 1, bias=norm == "none"), NORMS[norm](after)]
    return nn.Sequential(*layers)


def _up(before: int, after: int, odd: tuple[int, int], *, norm: str | None, dropout: float) -> nn.Sequential:
    """Return a level that doubles the size, and adds the row and the column that halving lost."""
    layers: list[nn.Module] = [
        nn.ReLU(),
        nn.ConvTranspose2d(before, after, 4, 2, 1, output_padding=odd, bias=norm is None),
    ]
    if norm is not None:
        layers += [NORMS[norm](after), Dropout(dropout)]
    return nn.Sequential(*layers)
