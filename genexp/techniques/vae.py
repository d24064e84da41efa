"""Variational autoencoder (Kingma & Welling 2014), with β (Higgins 2017) and free bits (Kingma 2016).

Options: the importance-weighted bound (Burda et al. 2016), a weight of the total correlation (Chen et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genexp.capabilities import CanEstimateLikelihood, CanInterpolate, CanReconstruct, CanSample, CanTraverse
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.device import promote_to_float32
from genexp.errors import ConfigError
from genexp.images.binarize import BINARIZATIONS
from genexp.images.grid import make_grid, make_grid_from_rows
from genexp.images.latent_walks import (
    WALK_FRAMES,
    decode_frames,
    interpolate_codes,
    make_animation,
    traverse_units,
)
from genexp.losses.reconstruction import gaussian_kl, reparameterize, total_correlation
from genexp.metrics.likelihood import active_units, importance_log_likelihood
from genexp.metrics.reconstruction import mse, psnr, ssim
from genexp.metrics.scores import mean_scores
from genexp.networks.conv import build_conv_decoder, build_conv_encoder
from genexp.networks.mlp import ACTIVATIONS, build_dense_decoder, build_dense_encoder
from genexp.networks.pixel_likelihoods import PIXEL_LIKELIHOODS
from genexp.networks.residual import build_halving_layers, build_residual_decoder, build_residual_encoder
from genexp.sharding import batch_mean
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    GradientPhase,
    Metrics,
    PictureLabels,
    Technique,
    detach_metrics,
    get_inputs,
    register_technique,
)
from genexp.techniques._named_networks import check_networks, select_network

PREVIEW_SAMPLES = 64  # images in the grid of prior samples
COLLAPSE_NATS = 0.1  # KL divergence of an image below which the latents carry practically no information
# Name → number of images decoded together in the likelihood estimate, whose memory it bounds.
NETWORKS = {"dense": 10_000, "conv": 2_000, "resnet": 2_000}


@dataclass
class VAEConfig:
    """Keys of conf/model/vae.yaml."""

    network: str  # key of NETWORKS of this module
    encoder: str | None  # name in genexp.networks.NETWORKS; replaces the encoder of `network`
    encoder_options: dict[str, Any]  # keyword parameters of that network
    decoder: str | None
    decoder_options: dict[str, Any]
    hidden: list[int]  # units of the encoder's dense layers; the decoder mirrors them
    channels: list[int]  # of the convolutions, each of which halves the size; unused by network=dense
    blocks: int  # residual blocks at each size; used by network=resnet
    latent: int  # dimensions
    activation: str  # key of ACTIVATIONS
    pixels: str  # key of BINARIZATIONS
    likelihood: str  # name in PIXEL_LIKELIHOODS
    likelihood_options: dict[str, Any]  # keyword parameters of the likelihood
    importance_samples: int  # latents per image in the bound that the training maximizes
    beta: float  # weight of the KL divergence
    total_correlation: float  # weight of the total correlation, a part of the KL divergence, relative to the rest
    kl_warmup_epochs: float  # epochs in which that weight rises linearly
    free_bits: float  # nats of KL divergence per latent dimension that the loss does not penalize

    def __post_init__(self) -> None:
        for key, choices in (
            ("network", NETWORKS),
            ("activation", ACTIVATIONS),
            ("pixels", BINARIZATIONS),
        ):
            value = getattr(self, key)
            require(value in choices, key, value, f"must be one of {', '.join(choices)}")
        check_networks(self, "encoder", "decoder")
        PIXEL_LIKELIHOODS.check("likelihood", self.likelihood, self.likelihood_options)
        require(bool(self.hidden) and min(self.hidden) > 0, "hidden", self.hidden, "must be positive integers")
        is_valid = bool(self.channels) and min(self.channels) > 0
        require(is_valid, "channels", self.channels, "must be positive integers")
        for key, minimum in (("latent", 1), ("blocks", 1), ("importance_samples", 1)):
            require(getattr(self, key) >= minimum, key, getattr(self, key), f"must be at least {minimum}")
        for key in ("beta", "total_correlation", "kl_warmup_epochs", "free_bits"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must be 0 or more")
        is_density = self.likelihood != "bernoulli"
        rule = "must be bernoulli unless model.pixels=gray"
        require(not (is_density and self.pixels != "gray"), "likelihood", self.likelihood, rule)
        if self.importance_samples > 1:
            for key, neutral in (("free_bits", 0), ("total_correlation", 1)):
                value = getattr(self, key)
                require(value == neutral, key, value, f"must be {neutral} if model.importance_samples is above 1")


@register_technique("vae")
class VariationalAutoencoder(
    Technique, CanSample, CanReconstruct, CanInterpolate, CanTraverse, CanEstimateLikelihood
):
    """Encoder to a Gaussian posterior over latents, and decoder to distributions of the pixels or features."""

    Config = VAEConfig
    num_examples = 8

    def __init__(self, config: VAEConfig, spec: DataSpec) -> None:
        super().__init__()
        # In an ensemble, floats may be tensors. Therefore no condition in the loss reads them.
        self.config, self.has_free_bits = config, config.free_bits > 0
        self.has_total_correlation = config.total_correlation != 1
        self.train_size = spec.train_size
        self.select_pixels = BINARIZATIONS[config.pixels]
        # A gray value is the probability of a bit for a Bernoulli likelihood, which needs bits.
        is_bernoulli_of_gray = config.likelihood == "bernoulli" and config.pixels == "gray"
        self.evaluated_pixels = "drawn" if is_bernoulli_of_gray else config.pixels
        self.is_table = spec.is_table
        if self.is_table:
            _check_table(config, spec.name)
        shape, features = spec.input_shape, config.hidden[-1]
        self.encoder = select_network("encoder", config, build_encoder(shape, config), shape, features)
        self.mean = nn.Linear(config.hidden[-1], config.latent)
        self.log_variance = nn.Linear(config.hidden[-1], config.latent)
        self.decoder = select_network("decoder", config, build_decoder(shape, config), shape, config.latent)
        self.likelihood = PIXEL_LIKELIHOODS.find(config.likelihood, config.likelihood_options)()
        if self.is_table:
            self.likelihood.is_bounded = False

    def phases(self) -> tuple[GradientPhase, ...]:
        return (GradientPhase("vae", self, self.loss),)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log-variance of q(latent | image): (batch, latent) each, in full precision."""
        hidden = self.encoder(images)
        # Full precision, because the KL divergence is a small difference of numbers near 1.
        return promote_to_float32(self.mean(hidden)), promote_to_float32(self.log_variance(hidden))

    def log_prob(self, images: Tensor, latents: Tensor) -> Tensor:
        """Return log p(image | latent) in nats: (batch, ...) and (batch, latent) → (batch,)."""
        return self.likelihood.log_prob(promote_to_float32(self.decoder(latents)), images)

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the negative bound (scalar) on the log-likelihood, in nats per image."""
        images = self.select_pixels(get_inputs(batch))
        mean, log_variance = self.posterior(images)
        if self.config.importance_samples > 1:
            return self._importance_weighted_loss(images, mean, log_variance, clock)
        latents = reparameterize(mean, log_variance)
        reconstruction = -self.log_prob(images, latents).mean()
        kl_per_unit = batch_mean(gaussian_kl(mean, log_variance))  # (latent,)
        clamped_kl = kl_per_unit.clamp(min=self.config.free_bits) if self.has_free_bits else kl_per_unit
        penalty, metrics = clamped_kl.sum(), {"reconstruction": reconstruction, "kl": kl_per_unit.sum()}
        if self.has_total_correlation:
            correlation = total_correlation(latents, mean, log_variance, self.train_size).mean()
            penalty = penalty + (self.config.total_correlation - 1) * correlation
            metrics["total_correlation"] = correlation
        return reconstruction + self.kl_weight(clock) * penalty, detach_metrics(**metrics)

    def _importance_weighted_loss(
        self, images: Tensor, mean: Tensor, log_variance: Tensor, clock: Clock
    ) -> tuple[Tensor, Metrics]:
        """Return the negative bound of `importance_samples` latents per image (Burda et al. 2016, equation 8)."""
        count = self.config.importance_samples
        noise = torch.randn(len(images), count, self.config.latent, device=mean.device, dtype=mean.dtype)
        log_variances = log_variance[:, None]
        latents = mean[:, None] + torch.exp(0.5 * log_variances) * noise  # (batch, samples, latent)
        repeated = images[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        log_prob = self.log_prob(repeated, latents.flatten(0, 1)).unflatten(0, (-1, count))  # (batch, samples)
        # log p(z) - log q(z|x): the normalizing constants cancel.
        log_prior_ratio = 0.5 * (noise.square() - latents.square() + log_variances).sum(2)
        log_weights = log_prob + self.kl_weight(clock) * log_prior_ratio
        loss = math.log(count) - torch.logsumexp(log_weights, dim=1).mean()
        kl = gaussian_kl(mean, log_variance).sum(1).mean()
        return loss, detach_metrics(reconstruction=-log_prob.mean(), kl=kl)

    def kl_weight(self, clock: Clock) -> float:
        """Return the weight of the KL divergence: β after a linear warm-up (Sønderby et al. 2016)."""
        warmup_steps = self.config.kl_warmup_epochs * clock.steps_per_epoch
        return self.config.beta * min(1.0, clock.step / warmup_steps if warmup_steps else 1.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [0, 1], or points, for latents (batch, latent): (batch, channels, height, width)."""
        return self.likelihood.mean(promote_to_float32(self.decoder(latents)))

    def encode(self, batch: Batch) -> Tensor:
        return self.posterior(get_inputs(batch))[0]

    def sample(self, count: int) -> Tensor:
        """Return the expected images of latents from the prior. Points are sampled from the likelihood instead."""
        means = self.decode(torch.randn(count, self.config.latent, device=self.mean.weight.device))
        return self.likelihood.sample(means) if self.is_table else means

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.posterior(images)[0])

    def log_likelihood(self, images: Tensor, num_samples: int) -> Tensor:
        chunk_size = max(1, NETWORKS[self.config.network] // len(images))
        return importance_log_likelihood(
            self.posterior, self.log_prob, images, num_samples=num_samples, chunk_size=chunk_size
        )

    def list_metrics(self) -> Sequence[str]:
        similarities = [metric.__name__ for metric in self._similarity_metrics]
        names = ("negative_elbo", "reconstruction", "kl", *similarities, "active_units")
        return (*names, "negative_bound") if self.config.importance_samples > 1 else names

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        means: list[Tensor] = []
        scores = mean_scores(test_batches, lambda batch: self._score_batch(get_inputs(batch), means))
        return {**scores, "active_units": float(active_units(torch.cat(means)))}

    def _score_batch(self, images: Tensor, means: list[Tensor]) -> dict[str, Tensor]:
        pixels = self.select_pixels(images)
        mean, log_variance = self.posterior(pixels)
        means.append(mean.float())
        reconstruction = -self.log_prob(pixels, reparameterize(mean, log_variance))
        kl = gaussian_kl(mean, log_variance).sum(1)
        reconstructed = self.decode(mean).float()
        scores = {
            "negative_elbo": reconstruction + kl,
            "reconstruction": reconstruction,
            "kl": kl,
            **{metric.__name__: metric(reconstructed, images) for metric in self._similarity_metrics},
        }
        if self.config.importance_samples > 1:
            scores["negative_bound"] = -self.log_likelihood(pixels, self.config.importance_samples)
        return scores

    @property
    def _similarity_metrics(self) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
        return (mse,) if self.is_table else (psnr, ssim)

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        if metrics["kl"] >= COLLAPSE_NATS:
            return None
        return (
            f"posterior collapse: the KL divergence is {metrics['kl']:.2g} nats per sample, so the latents "
            f"contain no information. Use a smaller model.beta, or a larger model.kl_warmup_epochs or "
            f"model.free_bits."
        )

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        return {"reconstructions": PictureLabels(rows=("original", "reconstruction"))}

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        if self.is_table:
            return {}
        # Samples are drawn first. Each preview has the same seed, so the noise is the same in each frame.
        samples = make_grid(self.sample(PREVIEW_SAMPLES), columns=8)
        images = self.select_pixels(examples["image"])
        return {"samples": samples, "reconstructions": make_grid_from_rows(images, self.reconstruct(images))}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        if self.is_table:
            return {}
        return {
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
        mean, log_variance = self.posterior(get_inputs(examples))
        units = gaussian_kl(mean, log_variance).mean(0).topk(min(8, self.config.latent)).indices
        limit = torch.full_like(mean[0, units], 3)
        return decode_frames(self.decode, traverse_units(mean[0], units, -limit, limit, num_frames))


def _check_table(config: VAEConfig, dataset_name: str) -> None:
    """Raise ConfigError unless the settings suit points, whose features are any numbers."""
    for key, value in (("network", "dense"), ("pixels", "gray"), ("likelihood", "gaussian")):
        if getattr(config, key) != value:
            raise ConfigError(
                f"model.{key}={getattr(config, key)}: not for the points of dataset={dataset_name}. "
                f"Use model.network=dense model.pixels=gray model.likelihood=gaussian."
            )


def build_encoder(shape: tuple[int, int, int], config: VAEConfig) -> nn.Module:
    """Return a network from images (batch, *shape) to features (batch, config.hidden[-1])."""
    hidden, activation = config.hidden, config.activation
    if config.network == "dense":
        return build_dense_encoder(shape, hidden, activation=activation, last_activation=activation)
    if config.network == "conv":
        layers = build_halving_layers(config.channels)
        return build_conv_encoder(shape, layers, hidden, activation=activation, last_activation=activation)
    return build_residual_encoder(shape, config.channels, hidden, num_blocks=config.blocks, activation=activation)


def build_decoder(shape: tuple[int, int, int], config: VAEConfig) -> nn.Module:
    """Return a network from latents (batch, config.latent) to the outputs of the pixels (batch, *shape)."""
    widths, activation = [config.latent, *config.hidden[::-1]], config.activation
    if config.network == "dense":
        return build_dense_decoder(shape, widths, activation=activation)
    if config.network == "conv":
        layers = build_halving_layers(config.channels)
        batch_norms = [False] * (len(layers) - 1)
        return build_conv_decoder(shape, layers, widths, batch_norms=batch_norms, activation=activation)
    return build_residual_decoder(shape, config.channels, widths, num_blocks=config.blocks, activation=activation)
