"""Base classes of the GANs: phases, losses, sampling and evaluation (Goodfellow et al. 2014)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genexp.capabilities import CanInterpolate
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.images.grid import make_grid
from genexp.images.latent_walks import make_animation, slerp
from genexp.images.transforms import DIFFERENTIABLE_AUGMENTATIONS
from genexp.losses.adversarial import ADVERSARIAL_LOSSES, score_with_slope
from genexp.networks.dcgan import LAYOUTS, build_conv_discriminator, build_conv_generator
from genexp.networks.gan import DISCRIMINATOR_NORMS, init_weights
from genexp.sharding import batch_mean
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    GradientPhase,
    Metrics,
    TechniquePart,
    detach_metrics,
)
from genexp.techniques._generation import SampleScoringTechnique
from genexp.techniques._named_networks import check_networks, select_network

PREVIEW_SAMPLES = 64  # images in the preview grid, generated from fixed noise
INTERPOLATION_KEYPOINTS = 4  # noise vectors on the closed path of each interpolated image
FRAMES_PER_SEGMENT = 15  # from one keypoint to the next, both included

# The discriminator is saturated if the mean D(x) is above this and the mean D(G(z)) below 1 minus this.
SATURATION_THRESHOLD = 0.99
COLLAPSE_THRESHOLD = 0.2  # the generator has collapsed if `diversity` is below this


@dataclass
class BaseGANConfig:
    """Configuration keys of all GANs."""

    latent: int  # dimensions of the noise
    loss: str  # name in ADVERSARIAL_LOSSES
    loss_options: dict[str, Any]  # keyword parameters of the loss
    generator: str | None  # name in NETWORKS; None for the technique's own
    generator_options: dict[str, Any]  # keyword parameters of that network
    discriminator: str | None
    discriminator_options: dict[str, Any]
    r1: float  # weight of the discriminator's squared gradient norm at real images
    r2: float  # weight of its squared gradient norm at generated images
    augmentation: list[str]  # keys of DIFFERENTIABLE_AUGMENTATIONS, for real and generated images
    init_std: float | None  # standard deviation of the initial weights; null keeps torch's initialization
    evaluation_samples: int  # generated images per evaluation

    def __post_init__(self) -> None:
        require(self.latent > 0, "latent", self.latent, "must be at least 1")
        ADVERSARIAL_LOSSES.check("loss", self.loss, self.loss_options)
        check_networks(self, "generator", "discriminator")
        for key in ("r1", "r2"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must be 0 or more")
        is_valid = set(self.augmentation) <= DIFFERENTIABLE_AUGMENTATIONS.keys()
        choices = ", ".join(DIFFERENTIABLE_AUGMENTATIONS)
        require(is_valid, "augmentation", self.augmentation, f"must contain only {choices}")
        require(self.init_std is None or self.init_std > 0, "init_std", self.init_std, "must be positive, or null")
        require(self.evaluation_samples > 5, "evaluation_samples", self.evaluation_samples, "must be 6 or more")


@dataclass
class ConvGANConfig(BaseGANConfig):
    """Configuration keys of the convolutional GANs."""

    layout: str  # key of LAYOUTS
    generator_width: int  # channels of the generator's last hidden layer
    discriminator_width: int  # channels of the discriminator's first layer
    generator_batch_norm: bool
    discriminator_norm: str  # key of DISCRIMINATOR_NORMS
    dropout: float  # probability in the discriminator, in [0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, table in (("layout", LAYOUTS), ("discriminator_norm", DISCRIMINATOR_NORMS)):
            value = getattr(self, key)
            require(value in table, key, value, f"must be one of {', '.join(table)}")
        for key in ("generator_width", "discriminator_width"):
            require(getattr(self, key) > 0, key, getattr(self, key), "must be at least 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must be a probability in [0, 1)")
        # The penalties depend on the gradient at each image. With batch norm, it would depend on other images too.
        is_per_sample_norm = self.discriminator_norm != "batch"
        for key in ("r1", "r2"):
            is_valid = is_per_sample_norm or getattr(self, key) == 0
            rule = "must be 0, unless discriminator_norm is none, layer or spectral"
            require(is_valid, key, getattr(self, key), rule)


class BaseGAN(SampleScoringTechnique, CanInterpolate):
    """Generator and discriminator, trained against each other (Goodfellow et al. 2014).

    The networks use images in [-1, 1]; `sample` and the methods for evaluation return images in [0, 1].
    """

    generator: nn.Module
    discriminator: nn.Module
    fixed_noise: Tensor  # (PREVIEW_SAMPLES, latent)
    generator_every = 1  # steps per generator update
    condition_size = 0  # inputs of the generator in addition to the noise
    discriminator_out_channels = 1  # scores of an image

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.adversarial_loss = ADVERSARIAL_LOSSES.find(config.loss, config.loss_options)()
        self.has_r1, self.has_r2 = config.r1 > 0, config.r2 > 0
        generator, discriminator = self.build_networks(spec)
        shape, noise_size = spec.image_shape, config.latent + self.condition_size
        self.generator = select_network("generator", config, generator, shape, noise_size)
        self.discriminator = select_network(
            "discriminator", config, discriminator, shape, self.discriminator_out_channels
        )
        if config.init_std is not None:
            init_weights(self, config.init_std)
        self.register_buffer("fixed_noise", torch.randn(PREVIEW_SAMPLES, config.latent))

    @abstractmethod
    def build_networks(self, spec: DataSpec) -> tuple[nn.Module, nn.Module]:
        """Return the generator and the discriminator for the images of `spec`."""

    def phases(self) -> tuple[GradientPhase, ...]:
        return (
            GradientPhase("discriminator", self.discriminator, self.discriminator_loss),
            GradientPhase("generator", self.generator, self.generator_loss, every=self.generator_every),
        )

    def generate(self, batch: Batch) -> Tensor:
        """Return new images (batch, channels, height, width) in [-1, 1], as many as `batch` has samples."""
        return self.generator(self.sample_noise(len(batch["image"])))

    def score(self, images: Tensor, batch: Batch) -> Tensor:
        """Return the discriminator's scores of images in [-1, 1]: (batch,).

        A conditional GAN takes the classes from `batch`.
        """
        return self.discriminator(images).squeeze(1)

    def sample_noise(self, count: int) -> Tensor:
        """Return standard normal noise (count, latent)."""
        return torch.randn(count, self.config.latent, device=self.fixed_noise.device)

    def augment(self, images: Tensor) -> Tensor:
        """Return randomly augmented images (batch, channels, height, width) in [-1, 1] (Zhao et al. 2020)."""
        for name in self.config.augmentation:
            images = DIFFERENTIABLE_AUGMENTATIONS[name](images)
        return images

    def discriminator_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the loss of the discriminator (scalar) on real and generated images, with its penalties."""
        images = 2 * batch["image"] - 1
        with torch.no_grad():  # this loss has no gradient for the generator
            generated = self.generate(batch)
        real, fake = self.augment(images), self.augment(generated)
        # Two passes: the batch statistics of a mixed batch would separate real from generated images.
        real_scores, r1 = self.score_with_slope(real, batch, self.has_r1)
        fake_scores, r2 = self.score_with_slope(fake, batch, self.has_r2)
        penalty, penalty_metrics = self.discriminator_penalty(real, fake, batch)
        loss = self.adversarial_loss.discriminator_loss(real_scores, fake_scores) + penalty
        loss = loss + 0.5 * (self.config.r1 * r1 + self.config.r2 * r2)
        metrics = {
            **self.discriminator_metrics(real_scores, fake_scores),
            **detach_metrics(diversity=diversity(generated, images)),
            **(detach_metrics(r1=r1) if self.has_r1 else {}),
            **(detach_metrics(r2=r2) if self.has_r2 else {}),
        }
        return loss, {**metrics, **penalty_metrics}

    def score_with_slope(self, images: Tensor, batch: Batch, has_slope: bool) -> tuple[Tensor, Tensor]:
        """Return the scores (batch,) and their mean squared gradient norm (scalar; 0 without `has_slope`)."""
        if not has_slope:
            return self.score(images, batch), torch.zeros((), device=images.device)
        return score_with_slope(lambda images: self.score(images, batch), images)

    def discriminator_penalty(self, real: Tensor, fake: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return an additional loss term of the discriminator (scalar), and its metrics.

        `real` and `fake` are images (batch, channels, height, width) in [-1, 1].
        """
        return torch.zeros((), device=real.device), {}

    def discriminator_metrics(self, real_scores: Tensor, fake_scores: Tensor) -> Metrics:
        """Return the mean of D(x) and of D(G(z)), scalars that tend to 0.5 at the equilibrium.

        If the loss gives no probabilities, return the difference of the mean scores instead. `real_scores` and
        `fake_scores` are (batch,).
        """
        d_real, d_fake = map(self.adversarial_loss.real_probability, (real_scores, fake_scores))
        if d_real is None or d_fake is None:
            return detach_metrics(distance=real_scores.mean() - fake_scores.mean())
        return detach_metrics(d_real=d_real.mean(), d_fake=d_fake.mean())

    def generator_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the loss of the generator (scalar) on newly generated images."""
        fake_scores = self.score(self.augment(self.generate(batch)), batch)
        loss = self.adversarial_loss.generator_loss(
            fake_scores, lambda: self.score(self.augment(2 * batch["image"] - 1), batch)
        )
        return loss, {}

    def generate_from_noise(self, noise: Tensor) -> Tensor:
        """Return the generated images in [0, 1] for noise (count, latent)."""
        return (self.generator(noise) + 1) / 2

    def sample(self, count: int) -> Tensor:
        return self.generate_from_noise(self.sample_noise(count))

    def list_parts(self, examples: Batch) -> dict[str, TechniquePart]:
        noise, ranges = self.sample_noise(len(examples["image"])), {"noise": "standard normal", "image": "[0, 1]"}
        return {"generator": TechniquePart(self.generate_from_noise, {"noise": noise}, "image", ranges)}

    def interpolate(self, examples: Batch, num_frames: int) -> Tensor:
        start = self.sample_noise(len(examples["image"]))
        return self._interpolate_noise(start, start.roll(-1, dims=0), num_frames)

    def _interpolate_noise(self, start: Tensor, end: Tensor, num_frames: int) -> Tensor:
        """Return images (frames, count, c, h, w) for noise on great circles from `start` to `end`.

        `start` and `end` are (count, latent) each.
        """
        return torch.stack(
            [
                self.generate_from_noise(slerp(start, end, fraction))
                for fraction in torch.linspace(0, 1, num_frames).tolist()
            ]
        )

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        return {"samples": make_grid(self.generate_from_noise(self.fixed_noise), columns=8)}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        keypoints = self.fixed_noise.unflatten(0, (INTERPOLATION_KEYPOINTS, -1))  # (keypoints, images, latent)
        segments = zip(keypoints, keypoints.roll(-1, dims=0), strict=True)
        walk = torch.cat([self._interpolate_noise(start, end, FRAMES_PER_SEGMENT) for start, end in segments])
        return {"interpolation": make_animation(walk)}

    def list_metrics(self) -> Sequence[str]:
        return self.generation_metrics.list_names()

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        features = self.generation_metrics.generate_features(self.sample)
        return self.generation_metrics.compute_scores(test_batches, features)

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        # No measured values in the messages: repeated messages are reported only once.
        if metrics["diversity"] < COLLAPSE_THRESHOLD:
            return (
                f"the generator has collapsed: its images vary less than {COLLAPSE_THRESHOLD} times as much as "
                f"real ones. Use a smaller optimizer.generator.lr, or a larger model.dropout."
            )
        if "d_real" not in metrics:
            return None
        if metrics["d_real"] > SATURATION_THRESHOLD and metrics["d_fake"] < 1 - SATURATION_THRESHOLD:
            return (
                f"the discriminator is saturated (d_real above {SATURATION_THRESHOLD}, d_fake below "
                f"{1 - SATURATION_THRESHOLD:.2f}): the generator learns little. Use a "
                f"smaller optimizer.discriminator.lr, or a larger model.dropout."
            )
        return None


class BaseConvGAN(BaseGAN):
    """Convolutional GAN for square images."""

    def build_networks(self, spec: DataSpec) -> tuple[nn.Module, nn.Module]:
        config, shape = self.config, spec.image_shape
        layout = LAYOUTS[config.layout]
        generator = build_conv_generator(
            config.latent + self.condition_size,
            layout.plan_generator(shape, config.generator_width),
            has_batch_norm=config.generator_batch_norm,
        )
        discriminator = build_conv_discriminator(
            shape[0],
            layout.plan_discriminator(shape, config.discriminator_width),
            norm=config.discriminator_norm,
            dropout=config.dropout,
            out_channels=self.discriminator_out_channels,
        )
        return generator, discriminator


def diversity(fake: Tensor, real: Tensor) -> Tensor:
    """Return the mean pixel standard deviation of a generated batch, divided by that of a real batch (scalar)."""
    return _pixel_std(fake) / _pixel_std(real).clamp_min(1e-6)


def _pixel_std(images: Tensor) -> Tensor:
    """Return the standard deviation of each pixel over the batch, averaged over pixels (scalar)."""
    return batch_mean((images - batch_mean(images)).square()).sqrt().mean()
