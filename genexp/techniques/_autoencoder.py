"""Base classes and network builders of the autoencoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from genexp.capabilities import CanInterpolate, CanReconstruct, CanTraverse
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.errors import ConfigError
from genexp.images.grid import make_grid_from_rows
from genexp.images.latent_walks import decode_frames, interpolate_codes, traverse_units
from genexp.losses.reconstruction import RECONSTRUCTION_LOSSES
from genexp.metrics.reconstruction import mse, psnr, ssim
from genexp.metrics.scores import mean_scores
from genexp.networks.conv import ConvLayerSpec, build_conv_decoder, build_conv_encoder
from genexp.networks.mlp import ACTIVATIONS, build_dense_decoder, build_dense_encoder
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    GradientPhase,
    Metrics,
    Phase,
    PictureLabels,
    Technique,
    get_inputs,
)
from genexp.techniques._named_networks import check_networks, select_network

RECONSTRUCTION_METRICS = (mse, psnr, ssim)
TABLE_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss}  # of points
CONV_STRIDES = (2, 2, 1)  # of the three convolutions: 28→13→6→4 pixels


@dataclass
class AutoencoderConfig:
    """Configuration keys of all autoencoders."""

    loss: str  # name in RECONSTRUCTION_LOSSES
    loss_options: dict[str, Any]  # keyword parameters of the loss
    encoder: str | None  # name in NETWORKS; None for the technique's own
    encoder_options: dict[str, Any]  # keyword parameters of that network
    decoder: str | None
    decoder_options: dict[str, Any]

    @property
    def latent_size(self) -> int:
        """Number of elements of a code."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        check_networks(self, "encoder", "decoder")
        RECONSTRUCTION_LOSSES.check("loss", self.loss, self.loss_options)


@dataclass
class DenseAutoencoderConfig(AutoencoderConfig):
    """Configuration keys of the dense autoencoders."""

    widths: list[int]  # units of the encoder's layers, the latent last; the decoder mirrors them
    activation: str  # key of ACTIVATIONS
    latent_activation: str  # key of ACTIVATIONS

    @property
    def latent_size(self) -> int:
        return self.widths[-1]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.widths) and min(self.widths) > 0, "widths", self.widths, "must be positive integers")
        for key in ("activation", "latent_activation"):
            value = getattr(self, key)
            require(value in ACTIVATIONS, key, value, f"must be one of {', '.join(ACTIVATIONS)}")


def _find_loss(config: AutoencoderConfig, dataset_name: str, *, is_table: bool) -> Callable[..., Tensor]:
    """Return the loss of a configuration. Raises ConfigError for one of images in [0, 1] on points."""
    if not is_table:
        loss: Callable[..., Tensor] = RECONSTRUCTION_LOSSES.find(config.loss, config.loss_options)
        return loss
    if config.loss not in TABLE_LOSSES:
        raise ConfigError(
            f"model.loss={config.loss}: takes images in [0, 1], and dataset={dataset_name} has points. "
            f"Use model.loss=mse or model.loss=l1."
        )
    return TABLE_LOSSES[config.loss]


class Autoencoder(Technique, CanReconstruct, CanInterpolate, CanTraverse):
    """Encoder to a low-dimensional latent and decoder back to the image.

    Subclasses define the networks and, for denoising, the noise.
    """

    takes_points: ClassVar[bool] = False  # whether the networks suit tables, as images of one row
    encoder: nn.Module
    decoder: nn.Module  # returns logits; the sigmoid is part of the loss, for numerical accuracy

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.is_table = spec.is_table and self.takes_points
        shape = spec.input_shape if self.is_table else spec.image_shape
        self.metrics = (mse,) if self.is_table else RECONSTRUCTION_METRICS
        self.reconstruction_loss = _find_loss(config, spec.name, is_table=self.is_table)
        encoder, decoder = self.build_networks(shape)
        self.encoder = select_network("encoder", config, encoder, shape, config.latent_size)
        self.decoder = select_network("decoder", config, decoder, shape, config.latent_size)

    @abstractmethod
    def build_networks(self, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
        """Return the encoder and the decoder for images of `shape`: (channels, height, width)."""

    def select_target(self, images: Tensor, corrupted: Tensor) -> Tensor:
        """Return the target of the loss, in the shape of `images`."""
        return images

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return the reconstructions of `images` in [0, 1]: (batch, channels, height, width)."""
        return self.decode(self.encoder(images))

    def decode(self, codes: Tensor) -> Tensor:
        """Return images in [0, 1], or points, for codes (batch, latent): (batch, channels, height, width)."""
        outputs: Tensor = self.decoder(codes)
        return outputs if self.is_table else outputs.sigmoid()

    def phases(self) -> tuple[Phase, ...]:
        return (GradientPhase("autoencoder", self, self.loss),)

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the reconstruction loss (scalar) of a batch."""
        images = get_inputs(batch)
        corrupted = self.corrupt(images)
        logits = self.decoder(self.encoder(corrupted))
        return self.reconstruction_loss(logits, self.select_target(images, corrupted)), {}

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        return {} if self.is_table else self.preview_images(examples["image"])

    def preview_images(self, images: Tensor) -> dict[str, Tensor]:
        """Return the previews for images (batch, channels, height, width)."""
        return {"reconstructions": make_grid_from_rows(images, self.reconstruct(images))}

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        return {"reconstructions": PictureLabels(rows=("original", "reconstruction"))}

    def list_metrics(self) -> Sequence[str]:
        return [metric.__name__ for metric in self.metrics]

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        return mean_scores(test_batches, self._score_batch)

    def _score_batch(self, batch: Batch) -> dict[str, Tensor]:
        images = get_inputs(batch)
        reconstructed = self.reconstruct(images).float()
        return {metric.__name__: metric(reconstructed, images) for metric in self.metrics}

    def encode(self, batch: Batch) -> Tensor:
        return self.encoder(get_inputs(batch))

    def interpolate(self, examples: Batch, num_frames: int) -> Tensor:
        return decode_frames(self.decode, interpolate_codes(self.encode(examples), num_frames))

    def traverse(self, examples: Batch, num_frames: int) -> Tensor:
        """Return images (frames, units, c, h, w): each path moves one unit from its minimum to its maximum.

        Minimum, maximum and standard deviation are those over `examples`. The units are those with the largest
        standard deviation, at most 8. The other units keep the values of the first sample.
        """
        codes = self.encode(examples)
        units = codes.std(0, correction=0).topk(min(8, codes.shape[1])).indices
        low, high = codes.amin(0)[units], codes.amax(0)[units]
        return decode_frames(self.decode, traverse_units(codes[0], units, low, high, num_frames))


def build_dense_autoencoder(
    shape: tuple[int, int, int], config: DenseAutoencoderConfig
) -> tuple[nn.Module, nn.Module]:
    """Return a dense encoder and the decoder that mirrors it, for images of `shape`: (channels, height, width)."""
    activation = config.activation
    encoder = build_dense_encoder(
        shape, config.widths, activation=activation, last_activation=config.latent_activation
    )
    return encoder, build_dense_decoder(shape, config.widths[::-1], activation=activation)


class DenoisingAutoencoder(Autoencoder):
    """Autoencoder that reconstructs images from noisy inputs (Vincent et al. 2008)."""

    def list_metrics(self) -> Sequence[str]:
        names = super().list_metrics()
        return [f"{prefix}{name}" for prefix in ("", "noisy_", "clean_") for name in names]

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        return {"reconstructions": PictureLabels(rows=("original", "noisy", "reconstruction"))}

    def preview_images(self, images: Tensor) -> dict[str, Tensor]:
        noisy = self.corrupt(images)
        return {"reconstructions": make_grid_from_rows(images, noisy.clamp(0, 1), self.reconstruct(noisy))}

    def _score_batch(self, batch: Batch) -> dict[str, Tensor]:
        images = get_inputs(batch)
        noisy = self.corrupt(images)
        shown = noisy if self.is_table else noisy.clamp(0, 1)
        outputs = {"": self.reconstruct(noisy), "noisy_": shown, "clean_": self.reconstruct(images)}
        return {
            f"{prefix}{metric.__name__}": metric(output.float(), images)
            for prefix, output in outputs.items()
            for metric in self.metrics
        }


@dataclass
class ConvAutoencoderConfig(AutoencoderConfig):
    """Configuration keys of the autoencoders with three convolutions and one dense layer."""

    channels: list[int]  # of the three convolutions
    latent: int  # units
    activation: str  # key of ACTIVATIONS
    latent_activation: str  # key of ACTIVATIONS

    @property
    def latent_size(self) -> int:
        return self.latent

    def __post_init__(self) -> None:
        super().__post_init__()
        is_valid = len(self.channels) == 3 and min(self.channels) > 0
        require(is_valid, "channels", self.channels, "must be three positive integers")
        require(self.latent > 0, "latent", self.latent, "must be at least 1")
        for key in ("activation", "latent_activation"):
            value = getattr(self, key)
            require(value in ACTIVATIONS, key, value, f"must be one of {', '.join(ACTIVATIONS)}")


def build_conv_autoencoder(
    shape: tuple[int, int, int], config: ConvAutoencoderConfig
) -> tuple[nn.Module, nn.Module]:
    """Return a convolutional encoder and the decoder that mirrors it.

    `shape` is the (channels, height, width) of the images.
    """
    layers = [
        ConvLayerSpec(channels, kernel_size=3, stride=stride, padding=0)
        for channels, stride in zip(config.channels, CONV_STRIDES, strict=True)
    ]
    activation = config.activation
    encoder = build_conv_encoder(
        shape, layers, [config.latent], activation=activation, last_activation=config.latent_activation
    )
    decoder = build_conv_decoder(shape, layers, [config.latent], batch_norms=[False, False], activation=activation)
    return encoder, decoder
