"""What translators of images share: a judge of patches and its game, and pictures of before and after."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from genexp.config import require
from genexp.images.grid import make_row_grid
from genexp.losses.adversarial import ADVERSARIAL_LOSSES, AdversarialLoss
from genexp.networks.patchgan import PATCHGAN_NORMS
from genexp.technique import Metrics, detach_metrics


@dataclass
class TranslationConfig:
    """What every translator can be told."""

    loss: str
    generator_width: int
    discriminator_width: int
    norm: str  # of the discriminator
    init_std: float | None  # of the initial weights; null leaves torch's

    def __post_init__(self) -> None:
        choices = ", ".join(ADVERSARIAL_LOSSES)
        require(self.loss in ADVERSARIAL_LOSSES, "loss", self.loss, f"choose one of {choices}")
        require(self.norm in PATCHGAN_NORMS, "norm", self.norm, f"choose one of {', '.join(PATCHGAN_NORMS)}")
        for key in ("generator_width", "discriminator_width"):
            require(getattr(self, key) > 0, key, getattr(self, key), "use at least 1")
        require(self.init_std is None or self.init_std > 0, "init_std", self.init_std, "use above 0, or null")


def to_signed_range(images: Tensor) -> Tensor:
    """Return images in [0, 1] as the networks see them, in [-1, 1]."""
    return 2 * images - 1


def to_unit_range(images: Tensor) -> Tensor:
    """Return a network's images as everyone else sees them, in [0, 1]."""
    return (images.float() + 1) / 2


def make_comparison_grid(*batches: Tensor) -> Tensor:
    """Return a picture with a row for each batch; gray ones gain channels where others have colors."""
    channels = max(batch.shape[1] for batch in batches)
    return make_row_grid(*(batch.float().expand(-1, channels, -1, -1) for batch in batches))


def discriminator_metrics(adversarial_loss: AdversarialLoss, real_scores: Tensor, fake_scores: Tensor) -> Metrics:
    """Return how real the discriminator takes real and translated images to be, where its scores say that."""
    if adversarial_loss.real_probability is None:
        return detach_metrics(distance=real_scores.mean() - fake_scores.mean())
    return detach_metrics(
        d_real=adversarial_loss.real_probability(real_scores).mean(),
        d_fake=adversarial_loss.real_probability(fake_scores).mean(),
    )
