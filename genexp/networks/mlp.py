"""Dense networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from genexp.networks.activations import ACTIVATIONS


def dense(widths: Sequence[int], *, between: str, last: str = "linear") -> nn.Sequential:
    """Return linear layers of `widths`, with activation `between` them and `last` at the end."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[between]()]
    layers[-1] = ACTIVATIONS[last]()
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))


def image_encoder(
    shape: tuple[int, int, int], widths: Sequence[int], *, between: str, last: str = "linear"
) -> nn.Sequential:
    """Return a dense network from images (batch, *shape) to (batch, widths[-1])."""
    return nn.Sequential(nn.Flatten(), *dense([math.prod(shape), *widths], between=between, last=last))


def image_decoder(shape: tuple[int, int, int], widths: Sequence[int], *, between: str) -> nn.Sequential:
    """Return a dense network from (batch, widths[0]) to image logits (batch, *shape)."""
    return nn.Sequential(*dense([*widths, math.prod(shape)], between=between), nn.Unflatten(1, shape))
