"""Networks: modules that receive numbers, never a configuration. Some are chosen by kind and name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from genexp.errors import ConfigError, PluginError
from genexp.registry import Registry, find_caller

BuilderT = TypeVar("BuilderT", bound=Callable[..., Any])

# Each member is a function (shape, size, **options) → nn.Module. `shape` is (channels, height, width) of images.
NETWORKS: dict[str, Registry[Any]] = {
    kind: Registry(kind, key=f"model.{kind}", group=f"genexp.networks.{kind}", source=source)
    for kind, source in {
        "encoder": "genexp.networks.mlp",  # images (batch, *shape) in [0, 1] → codes (batch, size)
        "decoder": "genexp.networks.mlp",  # codes (batch, size) → logits of images (batch, *shape)
        "generator": "genexp.networks.gan",  # noise (batch, size) → images (batch, *shape) in [-1, 1]
        "discriminator": "genexp.networks.gan",  # images (batch, *shape) in [-1, 1] → scores (batch, size)
        # images (batch, *shape) in [-1, 1] → images (batch, size, height, width) in [-1, 1]; size: channels
        "translator": "genexp.networks.resnet",
        # images (batch, *shape), times (batch,) in [0, 1] and classes (batch,) → velocities (batch, *shape)
        "velocity": "genexp.networks.conditional_unet",
    }.items()
}


def register_network(name: str, kind: str = "") -> Callable[[BuilderT], BuilderT]:
    """Return a decorator that registers a network of one of the kinds of `NETWORKS`. Raises PluginError."""
    if kind not in NETWORKS:
        kinds = ", ".join(NETWORKS)
        raise PluginError(f"{find_caller()}: kind={kind!r}: unknown kind of network. Use one of: {kinds}.")
    NETWORKS[kind].check_name(name)

    def register(builder: BuilderT) -> BuilderT:
        NETWORKS[kind].register(name, builder)
        return builder

    return register


def build_network(kind: str, name: str, options: Mapping[str, Any], shape: tuple[int, int, int], size: int) -> Any:
    """Return the network `name` of a kind. Raises ConfigError if its output has a wrong shape.

    `shape` is the (channels, height, width) of images, `size` the number that NETWORKS states for the kind.
    The network is called once with zeros, which also sets the sizes of lazy layers.
    """
    import torch  # slow

    images, codes = torch.zeros(2, *shape), torch.zeros(2, size)
    inputs: tuple[Any, ...]
    inputs, expected = {
        "encoder": ((images,), (2, size)),
        "decoder": ((codes,), (2, *shape)),
        "generator": ((codes,), (2, *shape)),
        "discriminator": ((images,), (2, size)),
        "translator": ((images,), (2, size, *shape[1:])),
        "velocity": ((images, torch.zeros(2), torch.zeros(2, dtype=torch.long)), (2, *shape)),
    }[kind]
    try:
        network = NETWORKS[kind].find(name)(shape, size, **options).eval()
        with torch.no_grad():
            found = tuple(network(*inputs).shape)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model.{kind}={name}: not built ({type(error).__name__}: {reason}). Check its options."
        ) from error
    if found != expected:
        raise ConfigError(
            f"model.{kind}={name}: returns the shape {found} for inputs {tuple(inputs[0].shape)}. "
            f"It must return {expected}."
        )
    return network.train()
