"""Multilayer perceptrons: dense encoders and decoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import nn

from genexp.networks import register_network

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


def build_mlp(widths: Sequence[int], *, activation: str, last_activation: str = "linear") -> nn.Sequential:
    """Return linear layers from `widths[0]` to `widths[-1]` features.

    `activation` follows each layer but the last, and `last_activation` the last; both are keys of ACTIVATIONS.
    """
    layers: list[nn.Module] = []
    for in_features, out_features in pairwise(widths):
        layers += [nn.Linear(in_features, out_features), ACTIVATIONS[activation]()]
    layers[-1] = ACTIVATIONS[last_activation]()
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))


def build_dense_encoder(
    shape: tuple[int, int, int], widths: Sequence[int], *, activation: str, last_activation: str = "linear"
) -> nn.Sequential:
    """Return a dense network from images (batch, *shape) to codes (batch, widths[-1])."""
    return nn.Sequential(
        nn.Flatten(),
        *build_mlp([math.prod(shape), *widths], activation=activation, last_activation=last_activation),
    )


def build_dense_decoder(shape: tuple[int, int, int], widths: Sequence[int], *, activation: str) -> nn.Sequential:
    """Return a dense network from codes (batch, widths[0]) to image logits (batch, *shape)."""
    return nn.Sequential(*build_mlp([*widths, math.prod(shape)], activation=activation), nn.Unflatten(1, shape))


@register_network("dense", kind="encoder")
def dense_encoder(
    shape: tuple[int, int, int], size: int, hidden: Sequence[int] = (400,), activation: str = "relu"
) -> nn.Sequential:
    """Return a dense encoder with layers of `hidden` units; see `NETWORKS`."""
    return build_dense_encoder(shape, [*hidden, size], activation=activation)


@register_network("dense", kind="decoder")
def dense_decoder(
    shape: tuple[int, int, int], size: int, hidden: Sequence[int] = (400,), activation: str = "relu"
) -> nn.Sequential:
    """Return a dense decoder with layers of `hidden` units; see `NETWORKS`."""
    return build_dense_decoder(shape, [size, *hidden], activation=activation)
