"""Configuration, metrics and image helpers shared by the image-to-image translation techniques."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genexp.config import require
from genexp.images.grid import make_grid_from_rows
from genexp.losses.adversarial import ADVERSARIAL_LOSSES, AdversarialLoss
from genexp.networks.patchgan import TRANSLATION_NORMS
from genexp.technique import Metrics, detach_metrics
from genexp.techniques._named_networks import check_networks


@dataclass
class TranslationConfig:
    """Configuration keys of all image-to-image translation techniques."""

    loss: str  # name in ADVERSARIAL_LOSSES
    loss_options: dict[str, Any]  # keyword parameters of the loss
    translator: str | None  # name in NETWORKS, of the generators; None for the technique's own
    translator_options: dict[str, Any]  # keyword parameters of that network
    discriminator: str | None
    discriminator_options: dict[str, Any]
    generator_width: int  # channels of the generator's first layer
    discriminator_width: int  # channels of the discriminator's first layer
    norm: str  # key of TRANSLATION_NORMS, for the discriminators and the U-Net of pix2pix
    init_std: float | None  # standard deviation of the initial weights; null keeps torch's initialization

    def __post_init__(self) -> None:
        check_networks(self, "translator", "discriminator")
        ADVERSARIAL_LOSSES.check("loss", self.loss, self.loss_options)
        require(
            self.norm in TRANSLATION_NORMS, "norm", self.norm, f"must be one of {', '.join(TRANSLATION_NORMS)}"
        )
        for key in ("generator_width", "discriminator_width"):
            require(getattr(self, key) > 0, key, getattr(self, key), "must be at least 1")
        require(self.init_std is None or self.init_std > 0, "init_std", self.init_std, "must be positive, or null")


def to_signed_range(images: Tensor) -> Tensor:
    """Return images (of any shape) in [0, 1] scaled to [-1, 1], the range of the networks."""
    return 2 * images - 1


def to_unit_range(images: Tensor) -> Tensor:
    """Return images (of any shape) in [-1, 1], the range of the networks, scaled to [0, 1] as floats."""
    return (images.float() + 1) / 2


def make_comparison_grid(*batches: Tensor) -> Tensor:
    """Return one image (channels, height, width) with a row for each batch (count, channels, height, width).

    Gray batches are expanded to three channels if another batch has colors.
    """
    channels = max(batch.shape[1] for batch in batches)
    return make_grid_from_rows(*(batch.float().expand(-1, channels, -1, -1) for batch in batches))


def compute_discriminator_metrics(
    adversarial_loss: AdversarialLoss, real_scores: Tensor, fake_scores: Tensor
) -> Metrics:
    """Return `d_real` and `d_fake`: the mean estimated probability that real and translated images are real.

    Both are scalars. Scores may have any shape. If the loss gives no probabilities, return the difference of the
    mean scores instead.
    """
    d_real, d_fake = map(adversarial_loss.real_probability, (real_scores, fake_scores))
    if d_real is None or d_fake is None:
        return detach_metrics(distance=real_scores.mean() - fake_scores.mean())
    return detach_metrics(d_real=d_real.mean(), d_fake=d_fake.mean())
