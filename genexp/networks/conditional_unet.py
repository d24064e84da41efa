"""U-Net conditioned on time and class (Ho et al. 2020), small enough for a CPU."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.errors import ConfigError
from genexp.networks import register_network

MIN_SIDE_PIXELS = 4  # of an image
COARSEST_SIDE_PIXELS = 8  # levels halve the feature maps until their shorter side is at most this
MAX_WIDTH_FACTOR = 2  # upper limit of channels, as a multiple of the first width
NORM_GROUPS = 8
EMBEDDING_FACTOR = 2  # features of the embedding of time and class, as a multiple of the width
# Angular frequencies of the time embedding: a geometric sequence. The largest one resolves steps of 0.005.
MIN_FREQUENCY, MAX_FREQUENCY = 0.5, 500.0


class ConditionalUNet(nn.Module):
    """U-Net from images, times in [0, 1] and classes to images of the same shape.

    The first convolution halves the size of the images, and the last one restores it. Most of the computation
    therefore runs on a quarter of the pixels.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], *, width: int, num_blocks: int, num_classes: int
    ) -> None:
        """Build for images of `size`: (height, width). Raises ConfigError for a side below MIN_SIDE_PIXELS.

        `width` is the number of channels of the first level, a multiple of NORM_GROUPS. Each level has
        `num_blocks` residual blocks in the down path, and as many in the up path.
        """
        super().__init__()
        sizes = _compute_level_sizes(size)
        widths = [width * min(MAX_WIDTH_FACTOR, 2**level) for level in range(len(sizes) - 1)]
        embedding_size = EMBEDDING_FACTOR * width
        self.embed_time = TimeEmbedding(embedding_size)
        self.embed_class = nn.Embedding(num_classes, embedding_size)
        self.stem = nn.Conv2d(channels, width, 3, 2, 1)
        self.down_blocks = nn.ModuleList(
            BlockSequence(level_width, level_width, embedding_size, num_blocks) for level_width in widths
        )
        self.halvings = nn.ModuleList(nn.Conv2d(finer, coarser, 3, 2, 1) for finer, coarser in pairwise(widths))
        self.middle_block = ConditionalBlock(widths[-1], widths[-1], embedding_size)
        self.up_blocks = nn.ModuleList(  # from the finest level to the coarsest, like all lists here
            BlockSequence(2 * level_width, level_width, embedding_size, num_blocks) for level_width in widths
        )
        self.doublings = nn.ModuleList(
            _build_doubling(coarser, finer, size)
            for (finer, coarser), size in zip(pairwise(widths), sizes[1:], strict=False)
        )
        self.head = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, width), nn.SiLU(), _build_doubling(width, channels, sizes[0])
        )

    def forward(self, images: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        """Return outputs in the shape of `images` (batch, channels, height, width).

        `times` in [0, 1] and `classes` (int64) are (batch,).
        """
        embedding = F.silu(self.embed_time(times) + self.embed_class(classes))
        features = self.stem(images)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down_blocks):
            features = blocks(features if level == 0 else self.halvings[level - 1](features), embedding)
            skips.append(features)
        features = self.middle_block(features, embedding)
        for level in reversed(range(len(skips))):
            features = self.up_blocks[level](torch.cat([features, skips[level]], dim=1), embedding)
            if level > 0:
                features = self.doublings[level - 1](features)
        return self.head(features)


class TimeEmbedding(nn.Module):
    """Two dense layers on sines and cosines of times in [0, 1] (Vaswani et al. 2017)."""

    frequencies: Tensor  # (size / 2,)

    def __init__(self, size: int) -> None:
        super().__init__()
        frequencies = np.geomspace(MIN_FREQUENCY, MAX_FREQUENCY, size // 2)
        self.register_buffer(
            "frequencies", torch.tensor(frequencies).to(torch.get_default_dtype()), persistent=False
        )
        self.layers = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, times: Tensor) -> Tensor:
        """Return embeddings (batch, size) of times (batch,)."""
        angles = times[:, None] * self.frequencies
        return self.layers(torch.cat([angles.cos(), angles.sin()], dim=1))


class ConditionalBlock(nn.Module):
    """Residual block whose second normalization is scaled and shifted by the embedding (Perez et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, embedding_size: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        )
        self.modulation = nn.Linear(embedding_size, 2 * out_channels)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.last = nn.Sequential(nn.SiLU(), _zero_weights(nn.Conv2d(out_channels, out_channels, 3, 1, 1)))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return features (batch, out_channels, height, width) of features (batch, in_channels, height, width).

        `embedding` is (batch, embedding_size).
        """
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        change = self.last(self.norm(self.first(features)) * (1 + scale) + shift)
        return self.shortcut(features) + change


class BlockSequence(nn.Module):
    """Residual blocks in sequence, all with the same embedding."""

    def __init__(self, in_channels: int, out_channels: int, embedding_size: int, num_blocks: int) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * num_blocks]
        self.blocks = nn.ModuleList(
            ConditionalBlock(before, after, embedding_size) for before, after in pairwise(widths)
        )

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return features (batch, out_channels, height, width)."""
        for block in self.blocks:
            features = block(features, embedding)
        return features


def _compute_level_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (height, width) of the image and of each level. Raises ConfigError for small images."""
    if min(size) < MIN_SIDE_PIXELS:
        raise ConfigError(
            f"images of {size[0]}×{size[1]} pixels: too small for this U-Net. "
            f"Use at least {MIN_SIDE_PIXELS}×{MIN_SIDE_PIXELS} pixels (dataset.size=28)."
        )
    sizes = [size]
    while len(sizes) == 1 or min(sizes[-1]) > COARSEST_SIDE_PIXELS:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _build_doubling(in_channels: int, out_channels: int, size: tuple[int, int]) -> nn.ConvTranspose2d:
    """Return the transposed convolution to `size`, (height, width), from its half, rounded up.

    A kernel size divisible by the stride, which even sides allow, avoids checkerboards (Odena et al. 2016).
    """
    kernel_size = 4 - size[0] % 2, 4 - size[1] % 2
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size, 2, 1)


def _zero_weights(layer: nn.Conv2d) -> nn.Conv2d:
    """Set weights and biases to 0, so that a residual block starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@register_network("unet", kind="velocity")
def unet_velocity(shape: tuple[int, int, int], size: int, width: int = 32, blocks: int = 1) -> ConditionalUNet:
    """Return a U-Net with `width` channels in the first level; see `NETWORKS`."""
    return ConditionalUNet(shape[0], (shape[1], shape[2]), width=width, num_blocks=blocks, num_classes=size)
