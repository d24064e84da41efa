"""pix2pix: image-to-image translation from paired images (Isola et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.capabilities import CanTranslate, Translation
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.losses.adversarial import ADVERSARIAL_LOSSES
from genexp.metrics.reconstruction import psnr, ssim
from genexp.metrics.scores import mean_scores
from genexp.networks.gan import init_weights
from genexp.networks.patchgan import build_patchgan
from genexp.networks.unet import UNet
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    GradientPhase,
    Metrics,
    PictureLabels,
    Technique,
    TechniquePart,
    detach_metrics,
    register_technique,
)
from genexp.techniques._named_networks import select_network
from genexp.techniques._translation import (
    TranslationConfig,
    compute_discriminator_metrics,
    make_comparison_grid,
    to_signed_range,
    to_unit_range,
)


@dataclass
class Pix2PixConfig(TranslationConfig):
    """Keys of conf/model/pix2pix.yaml."""

    l1_weight: float  # of the mean absolute difference to the target, for images in [-1, 1]
    dropout: float  # probability in the inner levels of the generator, in [0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.l1_weight >= 0, "l1_weight", self.l1_weight, "must be 0 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must be a probability in [0, 1)")


@register_technique("pix2pix")
class Pix2Pix(Technique, CanTranslate):
    """U-Net generator with a PatchGAN discriminator that is conditioned on the input image."""

    Config = Pix2PixConfig
    num_examples = 12

    def __init__(self, config: Pix2PixConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.adversarial_loss = ADVERSARIAL_LOSSES.find(config.loss, config.loss_options)()
        in_channels, height, width = spec.get_shape("input")
        out_channels, *_ = spec.get_shape("target")
        size, norm = (height, width), config.norm
        generator = UNet(
            in_channels, out_channels, size, width=config.generator_width, norm=norm, dropout=config.dropout
        )
        self.generator = select_network("translator", config, generator, (in_channels, *size), out_channels)
        channels = in_channels + out_channels
        discriminator = build_patchgan(channels, size, width=config.discriminator_width, norm=norm)
        self.discriminator = select_network("discriminator", config, discriminator, (channels, *size), 1)
        if config.init_std is not None:
            init_weights(self, config.init_std)

    def phases(self) -> tuple[GradientPhase, ...]:
        return (
            GradientPhase("generator", self.generator, self.generator_loss),
            GradientPhase("discriminator", self.discriminator, self.discriminator_loss),
        )

    def generator_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the adversarial loss plus the weighted L1 distance to the targets (scalar)."""
        inputs, target = to_signed_range(batch["input"]), to_signed_range(batch["target"])
        fake = self.generator(inputs)
        adversarial = self.adversarial_loss.generator_loss(
            self.score(inputs, fake), lambda: self.score(inputs, target)
        )
        l1 = F.l1_loss(fake, target)  # of images in [-1, 1]; the metric is that of images in [0, 1]
        return adversarial + self.config.l1_weight * l1, detach_metrics(adversarial=adversarial, l1=l1 / 2)

    def discriminator_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the loss of the discriminator (scalar) on pairs with real and with translated images."""
        inputs, target = to_signed_range(batch["input"]), to_signed_range(batch["target"])
        with torch.no_grad():  # this loss has no gradient for the generator
            fake = self.generator(inputs)
        # Two passes: the batch statistics of a mixed batch would separate real from generated images.
        real_scores, fake_scores = self.score(inputs, target), self.score(inputs, fake)
        return self.adversarial_loss.discriminator_loss(real_scores, fake_scores), compute_discriminator_metrics(
            self.adversarial_loss, real_scores, fake_scores
        )

    def score(self, inputs: Tensor, images: Tensor) -> Tensor:
        """Return a score for each patch of `images`, given their `inputs`: (batch, 1, rows, columns).

        A discriminator that is chosen by name gives one score: (batch, 1).

        `inputs` and `images` are (batch, channels, height, width) in [-1, 1].
        """
        return self.discriminator(torch.cat([inputs, images], dim=1))

    def translate(self, images: Tensor) -> Tensor:
        """Return the translations of images (batch, channels, height, width), in [0, 1] and of the same size."""
        return to_unit_range(self.generator(to_signed_range(images)))

    def translations(self) -> Sequence[Translation]:
        return (Translation("translated", "input", "target", self.translate),)

    def list_parts(self, examples: Batch) -> dict[str, TechniquePart]:
        ranges = {"input": "[0, 1]", "translation": "[0, 1]"}
        return {"generator": TechniquePart(self.translate, {"input": examples["input"]}, "translation", ranges)}

    def list_metrics(self) -> Sequence[str]:
        return ("l1", "ssim", "psnr")

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        return mean_scores(test_batches, self._score_batch)

    def _score_batch(self, batch: Batch) -> dict[str, Tensor]:
        translated, target = self.translate(batch["input"]), batch["target"]
        return {
            "l1": (translated - target).abs().flatten(1).mean(1),
            "ssim": ssim(translated, target),
            "psnr": psnr(translated, target),
        }

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        inputs = examples["input"]
        return {"translations": make_comparison_grid(inputs, self.translate(inputs), examples["target"])}

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        return {"translations": PictureLabels(rows=("input", "translation", "target"))}
