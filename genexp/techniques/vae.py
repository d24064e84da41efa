"""Variational autoencoder (Kingma & Welling 2014), with β (Higgins 2017) and free bits (Kingma 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genexp.capabilities import CanEstimateLikelihood, CanInterpolate, CanReconstruct, CanSample, CanTraverse
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.device import promote_to_float32
from genexp.images.grid import make_grid, make_grid_from_rows
from genexp.images.latent_walks import (
    WALK_FRAMES,
    decode_frames,
    interpolate_codes,
    make_animation,
    traverse_units,
)
from genexp.losses.reconstruction import bernoulli_log_likelihood, gaussian_kl, reparameterize
from genexp.metrics.likelihood import active_units, importance_log_likelihood
from genexp.metrics.reconstruction import psnr, ssim
from genexp.metrics.scores import mean_scores
from genexp.networks.mlp import ACTIVATIONS, build_dense_decoder, build_dense_encoder
from genexp.sharding import batch_mean
from genexp.technique import Batch, Batches, Clock, GradientPhase, Metrics, Technique, detach_metrics, register

PREVIEW_SAMPLES = 64  # images in the grid of prior samples
LATENTS_PER_CHUNK = 20  # latent samples per image decoded together in the likelihood estimate


@dataclass
class VAEConfig:
    """Keys of conf/model/vae.yaml."""

    hidden: list[int]  # units of the encoder's layers; the decoder mirrors them
    latent: int  # dimensions
    activation: str  # key of ACTIVATIONS
    beta: float  # weight of the KL divergence
    kl_warmup_epochs: float  # epochs in which that weight rises linearly
    free_bits: float  # nats of KL divergence per latent dimension that the loss does not penalize

    def __post_init__(self) -> None:
        require(bool(self.hidden) and min(self.hidden) > 0, "hidden", self.hidden, "use positive widths")
        require(self.latent > 0, "latent", self.latent, "use at least 1")
        choices = ", ".join(ACTIVATIONS)
        require(self.activation in ACTIVATIONS, "activation", self.activation, f"choose one of {choices}")
        for key in ("beta", "kl_warmup_epochs", "free_bits"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "use 0 or more")


@register
class VariationalAutoencoder(
    Technique, CanSample, CanReconstruct, CanInterpolate, CanTraverse, CanEstimateLikelihood
):
    """Encoder to a Gaussian posterior over latents, and decoder to Bernoulli distributions of the pixels."""

    Config = VAEConfig
    name = "vae"
    objective = "negative_elbo"
    num_examples = 8

    def __init__(self, config: VAEConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.has_free_bits = config, config.free_bits > 0
        shape, hidden, activation = spec.image_shape, config.hidden, config.activation
        self.encoder = build_dense_encoder(shape, hidden, activation=activation, last_activation=activation)
        self.mean = nn.Linear(hidden[-1], config.latent)
        self.log_variance = nn.Linear(hidden[-1], config.latent)
        self.decoder = build_dense_decoder(shape, [config.latent, *hidden[::-1]], activation=activation)

    def phases(self) -> tuple[GradientPhase, ...]:
        return (GradientPhase("vae", self, self.loss),)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log-variance of q(latent | image): (batch, latent) each, in full precision."""
        hidden = self.encoder(images)
        # The KL divergence is a small difference of numbers near 1.
        return promote_to_float32(self.mean(hidden)), promote_to_float32(self.log_variance(hidden))

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        images = batch["image"]
        mean, log_variance = self.posterior(images)
        logits = self.decoder(reparameterize(mean, log_variance))
        reconstruction = -bernoulli_log_likelihood(logits, images).mean()
        kl_per_unit = batch_mean(gaussian_kl(mean, log_variance))  # (latent,)
        clamped_kl = kl_per_unit.clamp(min=self.config.free_bits) if self.has_free_bits else kl_per_unit
        loss = reconstruction + self.kl_weight(clock) * clamped_kl.sum()
        return loss, detach_metrics(reconstruction=reconstruction, kl=kl_per_unit.sum())

    def kl_weight(self, clock: Clock) -> float:
        """Return the weight of the KL divergence: β after a linear warm-up (Sønderby et al. 2016)."""
        warmup_steps = self.config.kl_warmup_epochs * clock.steps_per_epoch
        return self.config.beta * min(1.0, clock.step / warmup_steps if warmup_steps else 1.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [0, 1] for latents (batch, latent)."""
        return self.decoder(latents).sigmoid()

    def encode(self, batch: Batch) -> Tensor:
        return self.posterior(batch["image"])[0]

    def sample(self, count: int) -> Tensor:
        return self.decode(torch.randn(count, self.config.latent, device=self.mean.weight.device))

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.posterior(images)[0])

    def log_likelihood(self, images: Tensor, num_samples: int) -> Tensor:
        def decoder_log_likelihood(images: Tensor, latents: Tensor) -> Tensor:
            return bernoulli_log_likelihood(self.decoder(latents), images)

        return importance_log_likelihood(
            self.posterior, decoder_log_likelihood, images, num_samples=num_samples, chunk_size=LATENTS_PER_CHUNK
        )

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        means: list[Tensor] = []
        scores = mean_scores(test_batches, lambda batch: self._score_batch(batch["image"], means))
        return {**scores, "active_units": float(active_units(torch.cat(means)))}

    def _score_batch(self, images: Tensor, means: list[Tensor]) -> dict[str, Tensor]:
        mean, log_variance = self.posterior(images)
        means.append(mean.float())
        reconstruction = -bernoulli_log_likelihood(self.decoder(reparameterize(mean, log_variance)), images)
        kl = gaussian_kl(mean, log_variance).sum(1)
        reconstructed = self.decode(mean).float()
        return {
            "negative_elbo": reconstruction + kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "psnr": psnr(reconstructed, images),
            "ssim": ssim(reconstructed, images),
        }

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        # Samples first: generators are seeded equally for each preview, so their noise is the same in each frame.
        samples = make_grid(self.sample(PREVIEW_SAMPLES), columns=8)
        images = examples["image"]
        return {"samples": samples, "reconstructions": make_grid_from_rows(images, self.reconstruct(images))}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        return {
            "prior_samples": make_grid(self.sample(PREVIEW_SAMPLES), columns=8),
            "interpolation": make_animation(self.interpolate(examples, WALK_FRAMES)),
            "traversal": make_animation(self.traverse(examples, WALK_FRAMES)),
        }

    def interpolate(self, examples: Batch, num_frames: int) -> Tensor:
        return decode_frames(self.decode, interpolate_codes(self.encode(examples), num_frames))

    def traverse(self, examples: Batch, num_frames: int) -> Tensor:
        """Return images (frames, units, c, h, w): each path moves one unit from −3 to 3 (99.7 % of the prior).

        The units are those with the largest KL divergence over `examples`, at most 8. The other units keep the
        posterior mean of the first sample.
        """
        mean, log_variance = self.posterior(examples["image"])
        units = gaussian_kl(mean, log_variance).mean(0).topk(min(8, self.config.latent)).indices
        limit = torch.full_like(mean[0, units], 3)
        return decode_frames(self.decode, traverse_units(mean[0], units, -limit, limit, num_frames))
