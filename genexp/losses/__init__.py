"""Loss functions on tensors, by kind and name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from genexp.errors import PluginError
from genexp.registry import Registry, find_caller

LossT = TypeVar("LossT", bound=Callable[..., Any])

LOSSES: dict[str, Registry[Any]] = {
    kind: Registry(f"{kind} loss", key="loss", group=f"genexp.losses.{kind}", source=source)
    for kind, source in {
        # (logits, target) → scalar; both (batch, channels, height, width), the target in [0, 1]
        "reconstruction": "genexp.losses.reconstruction",
        # (prediction, target), any tensors of one shape → scalar
        "regression": "genexp.losses.regression",
        # class with discriminator_loss, generator_loss and real_probability, see genexp.losses.adversarial
        "adversarial": "genexp.losses.adversarial",
        # (codes (batch, latent), centers (clusters, latent), codes in evaluation mode (batch, latent), fraction of
        # the images in each cluster (clusters,)) → scalar
        "clustering": "genexp.techniques.deep_kmeans",
        # nn.Module with log_prob and mean, see genexp.networks.pixel_likelihoods
        "likelihood": "genexp.networks.pixel_likelihoods",
        # features (1, channels, height, width) → statistic of any fixed shape; the loss is its squared error
        "style": "genexp.techniques.style_transfer",
        # (features, features of the content image), (1, channels, height, width) each → scalar
        "content": "genexp.losses.regression",
    }.items()
}


def register_loss(name: str, kind: str = "") -> Callable[[LossT], LossT]:
    """Return a decorator that registers a loss of one of the kinds of `LOSSES`. Raises PluginError."""
    if kind not in LOSSES:
        kinds = ", ".join(LOSSES)
        raise PluginError(f"{find_caller()}: kind={kind!r}: unknown kind of loss. Use one of: {kinds}.")
    LOSSES[kind].check_name(name)

    def register(loss: LossT) -> LossT:
        LOSSES[kind].register(name, loss)
        return loss

    return register
