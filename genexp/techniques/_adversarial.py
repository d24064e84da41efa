"""What all GANs share: two players and their phases, fixed noise to look at, and a judge of samples."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genexp.capabilities import CanInterpolate, CanSample
from genexp.config import require
from genexp.data.dataset import Dataset, DataSpec
from genexp.images.grid import make_grid
from genexp.images.latent_walks import make_animation
from genexp.losses.adversarial import ADVERSARIAL_LOSSES
from genexp.metrics.generation import GenerationMetrics
from genexp.networks.dcgan import LAYOUTS, build_conv_discriminator, build_conv_generator
from genexp.networks.gan import DISCRIMINATOR_NORMS, init_weights
from genexp.sharding import batch_mean
from genexp.technique import Batch, Batches, Clock, GradientPhase, Metrics, Technique, detach_metrics

PREVIEW_SAMPLES = 64  # images of fixed noise in a picture
INTERPOLATION_KEYPOINTS = 4  # noise vectors that each image of the interpolation passes through, on its round
FRAMES_PER_SEGMENT = 15  # from one of them to the next, both included
GENERATION_BATCH_SIZE = 500

SATURATION_THRESHOLD = (
    0.99  # belief in real images above which, with as little in fakes, there is nothing left to learn
)
COLLAPSE_THRESHOLD = 0.2  # diversity of the generated images, relative to that of the real ones


@dataclass
class BaseGANConfig:
    """What every GAN can be told."""

    latent: int
    loss: str
    init_std: float | None  # of the initial weights; null leaves torch's
    evaluation_samples: int

    def __post_init__(self) -> None:
        require(self.latent > 0, "latent", self.latent, "use at least 1")
        choices = ", ".join(ADVERSARIAL_LOSSES)
        require(self.loss in ADVERSARIAL_LOSSES, "loss", self.loss, f"choose one of {choices}")
        require(self.init_std is None or self.init_std > 0, "init_std", self.init_std, "use above 0, or null")
        require(self.evaluation_samples > 5, "evaluation_samples", self.evaluation_samples, "use 6 or more")


@dataclass
class ConvGANConfig(BaseGANConfig):
    """A GAN of convolutions."""

    layout: str
    generator_width: int
    discriminator_width: int
    generator_batch_norm: bool
    discriminator_norm: str
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, table in (("layout", LAYOUTS), ("discriminator_norm", DISCRIMINATOR_NORMS)):
            value = getattr(self, key)
            require(value in table, key, value, f"choose one of {', '.join(table)}")
        for key in ("generator_width", "discriminator_width"):
            require(getattr(self, key) > 0, key, getattr(self, key), "use at least 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "use a probability in [0, 1)")


class BaseGAN(Technique, CanSample, CanInterpolate):
    """A generator learns to make images that a discriminator cannot tell from real ones (Goodfellow et al. 2014).

    Inside, images are in [-1, 1].
    """

    objective = "frechet"
    generator: nn.Module
    discriminator: nn.Module
    fixed_noise: Tensor
    generator_every = 1

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.adversarial_loss = ADVERSARIAL_LOSSES[config.loss]
        self.generator, self.discriminator = self.build(spec)
        if config.init_std is not None:
            init_weights(self, config.init_std)
        self.register_buffer("fixed_noise", torch.randn(PREVIEW_SAMPLES, config.latent))
        self.generation_metrics: GenerationMetrics | None = None

    @abstractmethod
    def build(self, spec: DataSpec) -> tuple[nn.Module, nn.Module]:
        """Return the generator and the discriminator."""

    def prepare_evaluation(self, dataset: Dataset) -> None:
        self.generation_metrics = GenerationMetrics(dataset)

    def phases(self) -> tuple[GradientPhase, ...]:
        return (
            GradientPhase("discriminator", self.discriminator, self.discriminator_loss),
            GradientPhase("generator", self.generator, self.generator_loss, every=self.generator_every),
        )

    def generate(self, batch: Batch) -> Tensor:
        """Return as many fresh generated images as `batch` has real ones."""
        return self.generator(self.sample_noise(len(batch["image"])))

    def score(self, images: Tensor, batch: Batch) -> Tensor:
        """Return how real the discriminator finds images in [-1, 1] that belong to `batch`: (batch,)."""
        return self.discriminator(images).squeeze(1)

    def sample_noise(self, count: int) -> Tensor:
        """Return noise (count, latent)."""
        return torch.randn(count, self.config.latent, device=self.fixed_noise.device)

    def discriminator_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        real = 2 * batch["image"] - 1
        with torch.no_grad():  # this loss must not teach the generator
            fake = self.generate(batch)
        # Apart: batch norm over a mixture would tell the two by its statistics.
        real_scores, fake_scores = self.score(real, batch), self.score(fake, batch)
        penalty, penalty_metrics = self.discriminator_penalty(real, fake, batch)
        loss = self.adversarial_loss.discriminator(real_scores, fake_scores) + penalty
        metrics = {
            **self.discriminator_metrics(real_scores, fake_scores),
            **detach_metrics(diversity=diversity(fake, real)),
        }
        return loss, {**metrics, **penalty_metrics}

    def discriminator_penalty(self, real: Tensor, fake: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return what else the discriminator minimizes, and metrics of it."""
        return torch.zeros((), device=real.device), {}

    def discriminator_metrics(self, real_scores: Tensor, fake_scores: Tensor) -> Metrics:
        """Return the mean of D(x) and of D(G(z)), which tend to 0.5 at the equilibrium.

        Where scores say nothing of probabilities, return how far apart they are.
        """
        real_probability = self.adversarial_loss.real_probability
        if real_probability is None:
            return detach_metrics(distance=real_scores.mean() - fake_scores.mean())
        return detach_metrics(
            d_real=real_probability(real_scores).mean(), d_fake=real_probability(fake_scores).mean()
        )

    def generator_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        return self.adversarial_loss.generator(self.score(self.generate(batch), batch)), {}

    def generate_from_noise(self, noise: Tensor) -> Tensor:
        """Return the images in [0, 1] that the generator makes of noise (count, latent)."""
        return (self.generator(noise) + 1) / 2

    def sample(self, count: int) -> Tensor:
        return self.generate_from_noise(self.sample_noise(count))

    def interpolate(self, examples: Batch, frames: int) -> Tensor:
        start = self.sample_noise(len(examples["image"]))
        return self._interpolate_noise(start, start.roll(-1, dims=0), frames)

    def _interpolate_noise(self, start: Tensor, end: Tensor, frames: int) -> Tensor:
        """Return images (frames, count, c, h, w) on the way from some noise to other, (count, latent) each."""
        return torch.stack(
            [
                self.generate_from_noise(slerp(start, end, fraction))
                for fraction in torch.linspace(0, 1, frames).tolist()
            ]
        )

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        return {"samples": make_grid(self.generate_from_noise(self.fixed_noise), columns=8)}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        keypoints = self.fixed_noise.unflatten(0, (INTERPOLATION_KEYPOINTS, -1))  # (stations, images, latent)
        segments = zip(keypoints, keypoints.roll(-1, dims=0), strict=True)
        walk = torch.cat([self._interpolate_noise(start, end, FRAMES_PER_SEGMENT) for start, end in segments])
        return {"generated": self.preview(examples)["samples"], "interpolation": make_animation(walk)}

    def evaluate(self, samples: Batches) -> dict[str, float]:
        assert self.generation_metrics is not None, "prepare() comes first"
        generated = [
            self.generation_metrics.extract_features(images) for images in self.generate_evaluation_images()
        ]
        return self.generation_metrics.compute_scores(samples, generated)

    def generate_evaluation_images(self) -> Iterator[Tensor]:
        """Yield `evaluation_samples` images in [0, 1], some at a time."""
        for count in compute_batch_sizes(self.config.evaluation_samples):
            yield self.sample(count)

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        # Without the numbers: the same words twice are one warning.
        if metrics["diversity"] < COLLAPSE_THRESHOLD:
            return (
                f"the generator has collapsed: its images vary less than {COLLAPSE_THRESHOLD} times as much as "
                f"real ones; lower optimizer.generator.lr, or give the discriminator more to do (model.dropout)"
            )
        if self.adversarial_loss.real_probability is None:
            return None
        if metrics["d_real"] > SATURATION_THRESHOLD and metrics["d_fake"] < 1 - SATURATION_THRESHOLD:
            return (
                f"the discriminator is saturated (d_real above {SATURATION_THRESHOLD}, d_fake below "
                f"{1 - SATURATION_THRESHOLD:.2f}): it teaches the generator little; lower "
                f"optimizer.discriminator.lr or raise model.dropout"
            )
        return None


class BaseConvGAN(BaseGAN):
    """A GAN of convolutions, fitted to the image's size and channels."""

    discriminator_outputs = 1  # of the discriminator
    condition_size = 0  # of the generator, beside the noise

    def build(self, spec: DataSpec) -> tuple[nn.Module, nn.Module]:
        config, shape = self.config, spec.image_shape
        layout = LAYOUTS[config.layout]
        generator = build_conv_generator(
            config.latent + self.condition_size,
            layout.generator_layers(shape, config.generator_width),
            batch_norm=config.generator_batch_norm,
        )
        discriminator = build_conv_discriminator(
            shape[0],
            layout.discriminator_layers(shape, config.discriminator_width),
            norm=config.discriminator_norm,
            dropout=config.dropout,
            out_channels=self.discriminator_outputs,
        )
        return generator, discriminator


def diversity(fake: Tensor, real: Tensor) -> Tensor:
    """Return the mean deviation of a pixel over the generated batch, relative to that over the real one."""
    return _pixel_std(fake) / _pixel_std(real).clamp_min(1e-6)


def _pixel_std(images: Tensor) -> Tensor:
    """Return the deviation of a pixel over the batch, averaged over pixels."""
    return batch_mean((images - batch_mean(images)).square()).sqrt().mean()


def slerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Return points on the great circles from `start` to `end`, (count, latent) each.

    On a straight line the norm sinks to where the generator has seen no noise (White 2016).
    """
    cosine = torch.cosine_similarity(start, end, dim=1)[:, None].clamp(-0.9999, 0.9999)
    angle = cosine.acos()
    mixed = torch.sin((1 - weight) * angle) * start + torch.sin(weight * angle) * end
    return mixed / angle.sin()


def compute_batch_sizes(count: int) -> list[int]:
    """Return numbers of images to generate at once, `count` in all."""
    full, rest = divmod(count, GENERATION_BATCH_SIZE)
    return [GENERATION_BATCH_SIZE] * full + [rest] * math.ceil(rest / GENERATION_BATCH_SIZE)
