"""Dense generators and discriminators of GANs, normalization layers and weight initialization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from genexp.networks import register_network
from genexp.networks.dropout import Dropout

LEAKY_RELU_SLOPE = 0.2  # for negative inputs (Radford et al. 2016)

# Number of channels → normalization layer of a discriminator. Spectral norm adds no layer: it normalizes weights,
# not activations.
DISCRIMINATOR_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),  # over the channels and pixels of each sample
    "spectral": lambda channels: nn.Identity(),
}


def build_dense_generator(
    latent_dim: int, hidden_widths: Sequence[int], shape: tuple[int, int, int], *, has_batch_norm: bool = False
) -> nn.Sequential:
    """Return a network from noise (batch, latent) to images (batch, *shape) in [-1, 1].

    `hidden_widths` are the units of the hidden layers.
    """
    modules: list[nn.Module] = []
    for in_features, out_features in pairwise([latent_dim, *hidden_widths]):
        modules.append(nn.Linear(in_features, out_features, bias=not has_batch_norm))
        if has_batch_norm:
            modules.append(nn.BatchNorm1d(out_features))
        modules.append(nn.LeakyReLU(LEAKY_RELU_SLOPE))
    return nn.Sequential(
        *modules, nn.Linear(hidden_widths[-1], math.prod(shape)), nn.Tanh(), nn.Unflatten(1, shape)
    )


def build_dense_discriminator(
    shape: tuple[int, int, int], hidden: Sequence[int], *, dropout: float = 0.0, has_spectral_norm: bool = False
) -> nn.Sequential:
    """Return a network from images (batch, *shape) in [-1, 1] to scores (batch, 1).

    `hidden` are the units of the hidden layers.
    """
    modules: list[nn.Module] = [nn.Flatten()]
    for in_features, out_features in pairwise([math.prod(shape), *hidden]):
        modules += [nn.Linear(in_features, out_features), nn.LeakyReLU(LEAKY_RELU_SLOPE)]
        if dropout:
            modules.append(Dropout(dropout))
    network = nn.Sequential(*modules, nn.Linear(hidden[-1], 1))
    return apply_spectral_norm(network) if has_spectral_norm else network


def apply_spectral_norm(network: nn.Sequential) -> nn.Sequential:
    """Divide each layer's weights by their largest singular value, and return `network` (Miyato et al. 2018)."""
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            spectral_norm(layer)
    return network


def init_weights(network: nn.Module, std: float) -> None:
    """Draw weights from N(0, std²) and the scales of normalization layers from N(1, std²). Set biases to 0.

    With spectral normalization, these are the weights before their division by the largest singular value.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            parameters = dict(module.named_parameters())
            name = "weight" if "weight" in parameters else "parametrizations.weight.original"
            nn.init.normal_(parameters[name], 0.0, std)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
            if module.weight is None:  # normalization without a scale
                continue
            nn.init.normal_(module.weight, 1.0, std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@register_network("dense", kind="generator")
def dense_generator(shape: tuple[int, int, int], size: int, hidden: Sequence[int] = (256, 512)) -> nn.Sequential:
    """Return a dense generator with layers of `hidden` units; see `NETWORKS`."""
    return build_dense_generator(size, hidden, shape, has_batch_norm=True)


@register_network("dense", kind="discriminator")
def dense_discriminator(
    shape: tuple[int, int, int], size: int, hidden: Sequence[int] = (512, 256)
) -> nn.Sequential:
    """Return a dense discriminator with layers of `hidden` units; see `NETWORKS`."""
    *layers, _ = build_dense_discriminator(shape, hidden)
    return nn.Sequential(*layers, nn.Linear(hidden[-1], size))
