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

    `shape` is the (channels, height, width) of images, `size` the number of elements of a code, of the noise or of
    the scores. The network is called once with zeros, which also sets the sizes of lazy layers.
    """
    import torch  # slow

    is_image_input = kind in ("encoder", "discriminator")
    inputs = torch.zeros(2, *shape) if is_image_input else torch.zeros(2, size)
    expected = (2, size) if is_image_input else (2, *shape)
    try:
        network = NETWORKS[kind].find(name)(shape, size, **options).eval()
        with torch.no_grad():
            found = tuple(network(inputs).shape)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model.{kind}={name}: not built ({type(error).__name__}: {reason}). Check its options."
        ) from error
    if found != expected:
        raise ConfigError(
            f"model.{kind}={name}: returns the shape {found} for inputs {tuple(inputs.shape)}. "
            f"It must return {expected}."
        )
    return network.train()
