"""CycleGAN: unpaired image-to-image translation between two domains (Zhu et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.capabilities import CanTranslate, Translation
from genexp.config import require
from genexp.data.dataset import Dataset, DataSpec
from genexp.errors import ConfigError
from genexp.images.transforms import resize
from genexp.losses.adversarial import ADVERSARIAL_LOSSES
from genexp.metrics.frechet import sliced_wasserstein
from genexp.metrics.reconstruction import ssim
from genexp.metrics.scores import mean_scores
from genexp.networks.gan import init_weights
from genexp.networks.patchgan import build_patchgan
from genexp.networks.resnet import build_resnet_generator
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
from genexp.techniques._image_history import ImageHistory
from genexp.techniques._named_networks import select_network
from genexp.techniques._translation import (
    TranslationConfig,
    compute_discriminator_metrics,
    make_comparison_grid,
    to_signed_range,
    to_unit_range,
)

MAX_COMPARED_PIXELS = 32  # upper limit of the side of images whose distributions are compared


@dataclass
class CycleGANConfig(TranslationConfig):
    """Keys of conf/model/cyclegan.yaml."""

    blocks: int | None  # residual blocks of a generator; null chooses by the size of the images
    cycle_weight: float
    identity_weight: float
    history: int  # past generated images kept per domain

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.blocks is None or self.blocks >= 0, "blocks", self.blocks, "must be 0 or more, or null")
        for key in ("cycle_weight", "identity_weight"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must be 0 or more")
        require(self.history > 0, "history", self.history, "must be at least 1 image")


@register_technique("cyclegan")
class CycleGAN(Technique, CanTranslate):
    """Two generators, a to b and b to a, trained with cycle consistency and one discriminator per domain."""

    Config = CycleGANConfig
    num_examples = 12

    def __init__(self, config: CycleGANConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.adversarial_loss = ADVERSARIAL_LOSSES.find(config.loss, config.loss_options)()
        a, b = _get_image_shape(spec, "a"), _get_image_shape(spec, "b")
        if a != b:
            raise ConfigError(
                f"dataset={spec.name}: images of a are {a}, those of b {b}. Use domains with images of one shape."
            )
        channels, *size = a
        shape = (size[0], size[1])
        width, blocks = config.generator_width, config.blocks
        self.generators = nn.ModuleDict(
            {
                direction: select_network(
                    "translator",
                    config,
                    build_resnet_generator(channels, channels, shape, width=width, num_blocks=blocks),
                    a,
                    channels,
                )
                for direction in ("ab", "ba")
            }
        )
        width, norm = config.discriminator_width, config.norm
        self.discriminators = nn.ModuleDict(
            {
                domain: select_network(
                    "discriminator", config, build_patchgan(channels, shape, width=width, norm=norm), a, 1
                )
                for domain in ("a", "b")
            }
        )
        if config.init_std is not None:
            init_weights(self, config.init_std)
        self.history_a, self.history_b = ImageHistory(config.history, a), ImageHistory(config.history, b)

    def phases(self) -> tuple[GradientPhase, ...]:
        return (
            GradientPhase("generators", self.generators, self.generator_loss),
            GradientPhase("discriminators", self.discriminators, self.discriminator_loss),
        )

    def generator_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the sum (scalar) of adversarial, cycle-consistency and identity losses of both directions."""
        a, b = to_signed_range(batch["a"]), to_signed_range(batch["b"])
        generator_ba, generator_ab = self.generators["ba"], self.generators["ab"]
        # Instance norm processes each image separately, so one batch can contain images of both domains.
        fake_b, identity_b = generator_ab(torch.cat([a, b])).split([len(a), len(b)])
        fake_a, identity_a = generator_ba(torch.cat([b, a])).split([len(b), len(a)])
        cycle = F.l1_loss(generator_ba(fake_b), a) + F.l1_loss(generator_ab(fake_a), b)
        identity = F.l1_loss(identity_a, a) + F.l1_loss(identity_b, b)
        discriminator_a, discriminator_b = self.discriminators["a"], self.discriminators["b"]
        adversarial = self.adversarial_loss.generator_loss(
            discriminator_a(fake_a), lambda: discriminator_a(a)
        ) + self.adversarial_loss.generator_loss(discriminator_b(fake_b), lambda: discriminator_b(b))
        loss = adversarial + self.config.cycle_weight * cycle + self.config.identity_weight * identity
        return loss, detach_metrics(adversarial=adversarial, cycle=cycle, identity=identity)

    def discriminator_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the sum (scalar) of the losses of both discriminators, on real and on past translated images."""
        a, b = to_signed_range(batch["a"]), to_signed_range(batch["b"])
        with torch.no_grad():  # this loss has no gradient for the generators
            fake_a = self.history_a.exchange(self.generators["ba"](b))
            fake_b = self.history_b.exchange(self.generators["ab"](a))
        discriminator_a, discriminator_b = self.discriminators["a"], self.discriminators["b"]
        scores = (discriminator_a(a), discriminator_a(fake_a)), (discriminator_b(b), discriminator_b(fake_b))
        loss = torch.stack([self.adversarial_loss.discriminator_loss(real, fake) for real, fake in scores]).sum()
        (real_scores_a, fake_scores_a), (real_scores_b, fake_scores_b) = scores
        return loss, compute_discriminator_metrics(
            self.adversarial_loss,
            torch.cat([real_scores_a, real_scores_b]),
            torch.cat([fake_scores_a, fake_scores_b]),
        )

    def translate_to_b(self, images: Tensor) -> Tensor:
        """Return translations to domain b of images of domain a: (batch, channels, height, width) in [0, 1]."""
        return to_unit_range(self.generators["ab"](to_signed_range(images)))

    def translate_to_a(self, images: Tensor) -> Tensor:
        """Return translations to domain a of images of domain b: (batch, channels, height, width) in [0, 1]."""
        return to_unit_range(self.generators["ba"](to_signed_range(images)))

    def translations(self) -> Sequence[Translation]:
        return (
            Translation("a_to_b", "a", "b", self.translate_to_b),
            Translation("b_to_a", "b", "a", self.translate_to_a),
        )

    def list_parts(self, examples: Batch) -> dict[str, TechniquePart]:
        ranges = {"image": "[0, 1]", "translation": "[0, 1]"}
        return {
            mapping.name: TechniquePart(
                mapping.translate, {"image": examples[mapping.source_stream]}, "translation", ranges
            )
            for mapping in self.translations()
        }

    def prepare_evaluation(self, dataset: Dataset) -> None:
        self.has_true_translations = "a_as_b" in dataset.test.streams

    def list_metrics(self) -> Sequence[str]:
        names = ("domain_distance", "cycle_l1", "identity_l1")
        return (*names, "truth_l1", "truth_ssim") if self.has_true_translations else names

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        thumbnails: dict[str, list[Tensor]] = {"a": [], "b": [], "fake_a": [], "fake_b": []}
        scores = mean_scores(test_batches, lambda batch: self._score_batch(batch, thumbnails))
        collected = {name: torch.cat(images) for name, images in thumbnails.items()}
        distances = [sliced_wasserstein(collected[domain], collected[f"fake_{domain}"]) for domain in ("a", "b")]
        return {"domain_distance": float(torch.stack(distances).mean()), **scores}

    def _score_batch(self, batch: Batch, thumbnails: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """Return per-sample scores (batch,), and append downscaled images to `thumbnails`.

        The scores are the cycle and identity distances. If the data set has true translations, the scores include
        the distance and the similarity to these.
        """
        a, b = batch["a"], batch["b"]
        fake_a, fake_b = self.translate_to_a(b), self.translate_to_b(a)
        for name, images in (("a", a), ("b", b), ("fake_a", fake_a), ("fake_b", fake_b)):
            height, width = images.shape[-2:]
            thumbnails[name].append(
                resize(images, (min(height, MAX_COMPARED_PIXELS), min(width, MAX_COMPARED_PIXELS)))
            )
        scores = {
            "cycle_l1": (_l1(self.translate_to_a(fake_b), a) + _l1(self.translate_to_b(fake_a), b)) / 2,
            "identity_l1": (_l1(self.translate_to_a(a), a) + _l1(self.translate_to_b(b), b)) / 2,
        }
        if "a_as_b" in batch:
            true_a, true_b = batch["b_as_a"], batch["a_as_b"]
            scores["truth_l1"] = (_l1(fake_a, true_a) + _l1(fake_b, true_b)) / 2
            scores["truth_ssim"] = (ssim(fake_a, true_a) + ssim(fake_b, true_b)) / 2
        return scores

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        a, b = examples["a"], examples["b"]
        fake_a, fake_b = self.translate_to_a(b), self.translate_to_b(a)
        return {
            "a_to_b": make_comparison_grid(a, fake_b, self.translate_to_a(fake_b)),
            "b_to_a": make_comparison_grid(b, fake_a, self.translate_to_b(fake_a)),
        }

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        return {
            "a_to_b": PictureLabels(rows=("a", "as b", "back to a")),
            "b_to_a": PictureLabels(rows=("b", "as a", "back to b")),
            "before_after": PictureLabels(rows=("a", "as b", "b", "as a")),
        }

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        a, b = examples["a"], examples["b"]
        return {"before_after": make_comparison_grid(a, self.translate_to_b(a), b, self.translate_to_a(b))}


def _l1(images: Tensor, others: Tensor) -> Tensor:
    """Return the mean absolute pixel difference of each pair of images: (batch, ...) twice → (batch,)."""
    return (images - others).abs().flatten(1).mean(1)


def _get_image_shape(spec: DataSpec, stream: str) -> tuple[int, int, int]:
    channels, height, width = spec.get_shape(stream)
    return channels, height, width
