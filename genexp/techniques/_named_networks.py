"""Networks chosen by name: the keys KIND and KIND_options of a technique, for the kinds of `NETWORKS`."""

from __future__ import annotations

from typing import Any

from torch import nn

from genexp.config import require
from genexp.networks import NETWORKS, build_network


def check_networks(config: Any, *kinds: str) -> None:
    """Check the keys KIND and KIND_options of a configuration. Raises FieldError."""
    for kind in kinds:
        name, options = getattr(config, kind), getattr(config, f"{kind}_options")
        if name is not None:
            NETWORKS[kind].check(kind, name, options)
        rule = f"requires a network by name. Use model.{kind}=NAME, or remove the options"
        require(name is not None or not options, f"{kind}_options", options, rule)


def select_network(
    kind: str, config: Any, default: nn.Module, shape: tuple[int, int, int], size: int
) -> nn.Module:
    """Return the network that the key `kind` of `config` names, or `default` where it is None.

    `shape` is the (channels, height, width) of images, `size` the number of elements of a code, of the noise or of
    the scores. Raises ConfigError.
    """
    name = getattr(config, kind)
    if name is None:
        return default
    network: nn.Module = build_network(kind, name, getattr(config, f"{kind}_options"), shape, size)
    return network
