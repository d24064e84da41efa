"""VQ-VAE: autoencoder with discrete codes, and a prior over them (van den Oord et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.capabilities import CanReconstruct
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.device import promote_to_float32
from genexp.images.grid import make_grid, make_grid_from_rows
from genexp.losses.reconstruction import RECONSTRUCTION_LOSSES
from genexp.metrics.reconstruction import mse, psnr, ssim
from genexp.metrics.scores import mean_scores
from genexp.networks.code_prior import CodePrior
from genexp.networks.conv import compute_feature_map_sizes
from genexp.networks.quantizers import FiniteScalarQuantizer, VectorQuantizer
from genexp.networks.residual import (
    build_halving_layers,
    build_residual_convolutions,
    build_residual_transposed_convolutions,
)
from genexp.sharding import batch_mean
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    GradientPhase,
    Metrics,
    PictureLabels,
    TechniquePart,
    detach_metrics,
    register_technique,
)
from genexp.techniques._generation import SampleScoringTechnique
from genexp.techniques._named_networks import check_networks, select_network

PREVIEW_SAMPLES, PREVIEW_RECONSTRUCTIONS = 64, 10  # images in the previews
MAX_CODEBOOK_IMAGES = 256  # codes in the image of the codebook
UNUSED_CODE_GRAY = 0.5  # gray value of unused codes in the image of the codebook
MIN_CODES_USED = 0.5  # a warning is logged if test images use a smaller fraction of the codes
QUANTIZERS = ("vq", "fsq")
ACTIVATION = "relu"  # of the encoder and the decoder


@dataclass
class VQVAEConfig:
    """Keys of conf/model/vq_vae.yaml."""

    encoder: str | None  # name in NETWORKS; None for the technique's own
    encoder_options: dict[str, Any]  # keyword parameters of that network
    decoder: str | None
    decoder_options: dict[str, Any]
    channels: list[int]  # of the encoder's convolutions, each of which halves the size; the decoder mirrors them
    blocks: int  # residual blocks at each size
    loss: str  # name in RECONSTRUCTION_LOSSES
    loss_options: dict[str, Any]  # keyword parameters of the loss
    quantizer: str  # one of QUANTIZERS
    codes: int  # vq: number of codes
    code_size: int  # vq: elements of a code
    commitment: float  # vq: weight of the distance between a vector and its code
    decay: float  # vq: of the moving averages that are the codes, in [0, 1)
    restart_threshold: float  # vq: codes used less often, relative to the mean, are replaced
    levels: list[int]  # fsq: number of values of each element
    prior_start: float  # fraction of the run for the autoencoder; the prior trains in the rest
    prior_width: int
    prior_layers: int
    prior_heads: int
    evaluation_samples: int  # generated images per evaluation

    def __post_init__(self) -> None:
        require(
            bool(self.channels) and min(self.channels) > 0, "channels", self.channels, "must be positive integers"
        )
        require(self.blocks >= 0, "blocks", self.blocks, "must be 0 or more")
        check_networks(self, "encoder", "decoder")
        RECONSTRUCTION_LOSSES.check("loss", self.loss, self.loss_options)
        choices = ", ".join(QUANTIZERS)
        require(self.quantizer in QUANTIZERS, "quantizer", self.quantizer, f"must be one of {choices}")
        require(self.codes > 1, "codes", self.codes, "must be at least 2")
        for key in ("code_size", "prior_width", "prior_layers", "prior_heads"):
            require(getattr(self, key) > 0, key, getattr(self, key), "must be at least 1")
        for key in ("commitment", "restart_threshold"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must be 0 or more")
        require(0 <= self.decay < 1, "decay", self.decay, "must be in [0, 1)")
        is_valid = bool(self.levels) and min(self.levels) > 2
        require(is_valid, "levels", self.levels, "must be integers of 3 or more")
        require(
            0 < self.prior_start < 1, "prior_start", self.prior_start, "must be a fraction of the run in (0, 1)"
        )
        is_valid = self.prior_width % self.prior_heads == 0
        require(is_valid, "prior_width", self.prior_width, f"must be a multiple of prior_heads={self.prior_heads}")
        require(self.evaluation_samples > 5, "evaluation_samples", self.evaluation_samples, "must be 6 or more")


@register_technique("vq_vae")
class VQVAE(SampleScoringTechnique, CanReconstruct):
    """Encoder to a grid of codes, decoder back to the image, and an autoregressive prior over the codes.

    The first part of a run trains the encoder, quantizer and decoder. The second part trains only the prior.
    """

    Config = VQVAEConfig
    num_examples = 300  # for the image of the codebook; reconstructions use `PREVIEW_RECONSTRUCTIONS` of them

    def __init__(self, config: VQVAEConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.reconstruction_loss = RECONSTRUCTION_LOSSES.find(config.loss, config.loss_options)
        self.quantizer = _build_quantizer(config)
        channels, shape, size = config.channels, spec.image_shape, self.quantizer.size
        self.grid_size = compute_feature_map_sizes((shape[1], shape[2]), build_halving_layers(channels))[-1]
        # A network by name has flat codes, of all positions.
        code_size = size * self.grid_size[0] * self.grid_size[1]
        encoder: nn.Module = nn.Sequential(
            *build_residual_convolutions(shape, channels, num_blocks=config.blocks, activation=ACTIVATION),
            nn.Conv2d(channels[-1], size, 1),
        )
        self.encoder = select_network("encoder", config, encoder, shape, code_size)
        if config.encoder is not None:
            self.encoder = nn.Sequential(self.encoder, nn.Unflatten(1, (size, *self.grid_size)))
        decoder: nn.Module = nn.Sequential(
            nn.Conv2d(size, channels[-1], 3, padding=1),
            *build_residual_transposed_convolutions(
                shape, channels, num_blocks=config.blocks, activation=ACTIVATION
            ),
        )
        self.decoder = select_network("decoder", config, decoder, shape, code_size)
        if config.decoder is not None:
            self.decoder = nn.Sequential(nn.Flatten(), self.decoder)
        self.prior = CodePrior(
            self.quantizer.num_codes,
            self.grid_size[0] * self.grid_size[1],
            width=config.prior_width,
            num_layers=config.prior_layers,
            num_heads=config.prior_heads,
        )

    def initialize(self, train_batches: Batches) -> None:
        if isinstance(self.quantizer, VectorQuantizer):
            images = next(iter(train_batches))["image"]
            self.quantizer.initialize(self.encode_vectors(images).flatten(0, 1))

    def phases(self) -> tuple[GradientPhase, ...]:
        autoencoder = nn.ModuleList([self.encoder, self.decoder])
        return (
            GradientPhase(
                "autoencoder",
                autoencoder,
                self.autoencoder_loss,
                is_active=lambda clock: not self.is_prior_due(clock),
            ),
            GradientPhase("prior", self.prior, self.prior_loss, is_active=self.is_prior_due),
        )

    def is_prior_due(self, clock: Clock) -> bool:
        """Return True if the step of `clock` trains the prior, and False if it trains the autoencoder."""
        return clock.step > self.config.prior_start * clock.total_steps

    def encode_vectors(self, images: Tensor) -> Tensor:
        """Return vectors (batch, positions, size) of images, not yet quantized. Positions go row by row."""
        return promote_to_float32(self.encoder(images)).flatten(2).mT

    def decode_logits(self, vectors: Tensor) -> Tensor:
        """Return the logits of images (batch, channels, height, width) for vectors (batch, positions, size)."""
        return self.decoder(vectors.mT.unflatten(2, self.grid_size))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return images in [0, 1] for codes (batch, positions)."""
        return self.decode_logits(self.quantizer.look_up(codes)).sigmoid()

    def encode_codes(self, images: Tensor) -> Tensor:
        """Return the codes of images: int64 (batch, positions)."""
        codes: Tensor = self.quantizer(self.encode_vectors(images)).codes
        return codes

    def autoencoder_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the reconstruction loss plus the loss of the quantizer (scalar), and update its codes."""
        images = batch["image"]
        vectors = self.encode_vectors(images)
        quantization = self.quantizer(vectors)
        self.quantizer.update(vectors.detach(), quantization.codes)
        reconstruction = self.reconstruction_loss(self.decode_logits(quantization.vectors), images)
        shares = batch_mean(F.one_hot(quantization.codes, self.quantizer.num_codes).to(vectors).mean(1))
        metrics = detach_metrics(
            reconstruction=reconstruction, perplexity=perplexity(shares), codes_used=used_fraction(shares)
        )
        return reconstruction + quantization.loss, metrics

    def prior_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the negative log-likelihood (scalar) of the codes, in nats per code."""
        with torch.no_grad():
            codes = self.encode_codes(batch["image"])
        return self.prior_nll(codes).mean(), {}

    def prior_nll(self, codes: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of codes (batch, positions) in nats per code: (batch,)."""
        logits = promote_to_float32(self.prior(codes))
        return F.cross_entropy(logits.mT, codes, reduction="none").mean(1)

    def sample(self, count: int) -> Tensor:
        return self.decode_codes(self.prior.sample(count))

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode_codes(self.encode_codes(images))

    def encode(self, batch: Batch) -> Tensor:
        """Return the vectors of the codes of all positions: (batch, positions · size)."""
        return self.quantizer.look_up(self.encode_codes(batch["image"])).flatten(1)

    def list_parts(self, examples: Batch) -> dict[str, TechniquePart]:
        images, ranges = examples["image"], {"image": "[0, 1]", "code": f"0 to {self.quantizer.num_codes - 1}"}
        return {
            "encoder": TechniquePart(self.encode_codes, {"image": images}, "code", ranges),
            "decoder": TechniquePart(self.decode_codes, {"code": self.encode_codes(images)}, "image", ranges),
        }

    def list_metrics(self) -> Sequence[str]:
        reconstruction_names = ("mse", "psnr", "ssim", "prior_nll", "reconstruction_frechet")
        return [*self.generation_metrics.list_names(), *reconstruction_names, "perplexity", "codes_used"]

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        metrics = self.generation_metrics
        shares: list[Tensor] = []  # (batch, codes) each
        features: list[Tensor] = []  # of the reconstructions

        def score(batch: Batch) -> dict[str, Tensor]:
            codes = self.encode_codes(batch["image"])
            reconstructions = self.decode_codes(codes).float()
            shares.append(F.one_hot(codes, self.quantizer.num_codes).float().mean(1))
            features.append(metrics.extract_features(reconstructions))
            scores = {metric.__name__: metric(reconstructions, batch["image"]) for metric in (mse, psnr, ssim)}
            return {**scores, "prior_nll": self.prior_nll(codes)}

        scores = mean_scores(test_batches, score)
        mean_shares = torch.cat(shares).mean(0)
        samples = metrics.generate_features(self.sample)
        return {
            **metrics.compute_scores(test_batches, samples),
            **scores,
            "reconstruction_frechet": metrics.compute_frechet(features),
            "perplexity": float(perplexity(mean_shares)),
            "codes_used": float(used_fraction(mean_shares)),
        }

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        if metrics.get("test/codes_used", 1.0) >= MIN_CODES_USED:
            return None
        setting = (
            "model.levels"
            if self.config.quantizer == "fsq"
            else "model.codes, or a larger model.restart_threshold"
        )
        return (
            f"most codes are dead: test images use less than {MIN_CODES_USED:.0%} of them. Use smaller {setting}."
        )

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        return {"reconstructions": PictureLabels(rows=("original", "reconstruction"))}

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        images = examples["image"]
        reconstructed = images[:PREVIEW_RECONSTRUCTIONS]
        return {
            "samples": make_grid(self.sample(PREVIEW_SAMPLES), columns=8),
            "reconstructions": make_grid_from_rows(reconstructed, self.reconstruct(reconstructed)),
            "codebook": self.render_codebook(images),
        }

    def render_codebook(self, images: Tensor) -> Tensor:
        """Return a grid with one image for each code: the mean of the regions of `images` encoded as this code.

        `images` is (batch, channels, height, width), the result (channels, grid height, grid width). The side of a
        region is three times that of the pixels of one position. Unused codes are gray.
        """
        num_codes, side = self.quantizer.num_codes, 2 ** len(self.config.channels)
        one_hot = F.one_hot(self.encode_codes(images), num_codes).to(images)  # (batch, positions, codes)
        regions = F.unfold(
            images, kernel_size=3 * side, padding=side, stride=side
        ).mT  # (batch, positions, pixels)
        counts = one_hot.sum((0, 1))[:, None]
        means = torch.einsum("bpc,bpr->cr", one_hot, regions) / counts.clamp_min(1)
        means = torch.where(counts > 0, means, UNUSED_CODE_GRAY)[:MAX_CODEBOOK_IMAGES]
        return make_grid(means.unflatten(1, (images.shape[1], 3 * side, 3 * side)), columns=16)


def perplexity(shares: Tensor) -> Tensor:
    """Return the exponential of the entropy of `shares` (codes,), which sum to 1: a number of codes (scalar)."""
    return torch.special.entr(shares).sum().exp()


def used_fraction(shares: Tensor) -> Tensor:
    """Return the fraction of the codes whose entry in `shares` (codes,) is not 0 (scalar)."""
    return (shares > 0).to(shares).mean()


def _build_quantizer(config: VQVAEConfig) -> VectorQuantizer | FiniteScalarQuantizer:
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(config.levels)
    return VectorQuantizer(
        config.codes,
        config.code_size,
        commitment=config.commitment,
        decay=config.decay,
        restart_threshold=config.restart_threshold,
    )
