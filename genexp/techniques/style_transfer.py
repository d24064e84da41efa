"""Neural style transfer: optimization of an image (Gatys, Ecker & Bethge 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.capabilities import CanStylize
from genexp.config import require
from genexp.data.dataset import Dataset, DataSpec
from genexp.data.loading import convert_and_scale
from genexp.device import promote_to_float32
from genexp.images.color import COLOR_MODES
from genexp.images.grid import PADDING_PIXELS, PADDING_VALUE
from genexp.images.transforms import resize
from genexp.losses import LOSSES, register_loss
from genexp.losses.regression import CONTENT_LOSSES
from genexp.networks.hed_weights import HED_INSTALL_COMMAND
from genexp.networks.vgg import LAYER_CHANNELS, POOLINGS, VGG, choose_depth, load_weights
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    GradientPhase,
    Metrics,
    PictureLabels,
    Technique,
    detach_metrics,
    register_technique,
)

STYLE_LOSSES = LOSSES["style"]
STREAMS = ("content", "style")


@dataclass
class StyleTransferConfig:
    """Keys of conf/model/style_transfer.yaml."""

    weights: str  # "auto", "hed", "imagenet", "random" or the path of a weight file
    pooling: str  # one of POOLINGS
    equalize_layers: bool  # scale each layer so that its Gram matrix of the style image has a mean square of 1
    content_loss: str  # name in CONTENT_LOSSES
    content_loss_options: dict[str, Any]  # keyword parameters of this loss
    style_loss: str  # name in STYLE_LOSSES: the statistic whose squared error is the loss
    style_loss_options: dict[str, Any]  # keyword parameters of this statistic
    content_layers: list[str]  # keys of LAYER_CHANNELS[depth]
    style_layers: list[str]  # keys of LAYER_CHANNELS[depth]
    content_weight: float
    style_weight: float
    variation_weight: float
    scales: list[float]  # fractions of the full size, in order of use; the last is 1
    preserve_color: str  # key of COLOR_MODES

    def __post_init__(self) -> None:
        CONTENT_LOSSES.check("content_loss", self.content_loss, self.content_loss_options)
        STYLE_LOSSES.check("style_loss", self.style_loss, self.style_loss_options)
        for key in ("content_layers", "style_layers"):
            layers = getattr(self, key)
            known = LAYER_CHANNELS[choose_depth(self.weights)]
            last = [name for name in known if name.startswith("conv")][-1].removeprefix("conv_")
            is_valid = bool(layers) and set(layers) <= set(known)
            require(is_valid, key, layers, f"must be layers such as conv_4, relu_4 or pool_4, up to {last}")
        for key in ("content_weight", "style_weight", "variation_weight"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must be 0 or more")
        is_valid = bool(self.scales) and all(0 < scale <= 1 for scale in self.scales) and self.scales[-1] == 1
        require(is_valid, "scales", self.scales, "must be fractions of the size in (0, 1], the last one 1")
        require(self.pooling in POOLINGS, "pooling", self.pooling, f"must be one of {', '.join(POOLINGS)}")
        choices = ", ".join(COLOR_MODES)
        require(
            self.preserve_color in COLOR_MODES, "preserve_color", self.preserve_color, f"must be one of {choices}"
        )


class ScaleLoss(nn.Module):
    """Content and style losses at one size, with the features that are their targets."""

    def __init__(self, size: tuple[int, int], features: VGG, config: StyleTransferConfig) -> None:
        """Create empty targets for images of `size`: (height, width). Raises ConfigError if it is too small."""
        super().__init__()
        self.size = size
        self.content_loss = CONTENT_LOSSES.find(config.content_loss, config.content_loss_options)
        self.compute_style = STYLE_LOSSES.find(config.style_loss, config.style_loss_options)
        shapes = features.compute_feature_shapes(size)
        for layer in config.content_layers:
            self.register_buffer(f"content_{layer}", torch.zeros(1, *shapes[layer]))
        for layer in config.style_layers:
            statistic = self.compute_style(torch.zeros(1, *shapes[layer]))
            self.register_buffer(f"style_{layer}", torch.zeros_like(statistic))
        self.content_layers, self.style_layers = config.content_layers, config.style_layers

    def set_targets(self, features: VGG, content: Tensor, style: Tensor) -> None:
        """Set the targets from two images (1, 3, height, width): `content` of this size, `style` of any size."""
        for layer, layer_features in features(content):
            if layer in self.content_layers:
                self.get_buffer(f"content_{layer}").copy_(layer_features)
        for layer, layer_features in features(style):
            if layer in self.style_layers:
                self.get_buffer(f"style_{layer}").copy_(self.compute_style(layer_features))

    def losses(self, vgg: VGG, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the content and style losses of `image` (1, 3, height, width): scalars, summed over layers.

        The image is resized to `self.size`.
        """
        content, style = [], []
        for layer, layer_features in vgg(resize(image, self.size)):
            if layer in self.content_layers:
                content.append(self.content_loss(layer_features, self.get_buffer(f"content_{layer}")))
            if layer in self.style_layers:
                style.append(F.mse_loss(self.compute_style(layer_features), self.get_buffer(f"style_{layer}")))
        return torch.stack(content).sum(), torch.stack(style).sum()


class ImageParameter(nn.Module):
    """Optimized image: (1, channels, height, width). Its values may leave [0, 1]: use `clamp_keep_gradient`."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.full((1, *shape), 0.5))


@register_technique("style_transfer")
class StyleTransfer(Technique, CanStylize):
    """Optimization of an image, from the content image toward the Gram matrices of the style image.

    The optimized image always has its full size. With several `scales`, the first phases compute the loss on a
    downscaled copy, which determines the coarse structure. Each phase has its own optimizer, because an estimate
    of the curvature at one scale is wrong at another scale.
    """

    Config = StyleTransferConfig
    num_examples = 1

    content: Tensor  # (1, 3, height, width) in [0, 1]

    def __init__(self, config: StyleTransferConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        _, height, width = spec.get_shape("content")
        _, *style_size = spec.get_shape("style")
        output_layers = [*config.content_layers, *config.style_layers]
        self.features = VGG(output_layers, depth=choose_depth(config.weights), pooling=config.pooling)
        self.color_mode = COLOR_MODES[config.preserve_color]
        self.canvas = ImageParameter((self.color_mode.channels, height, width))
        self.scales = nn.ModuleList()
        for fraction in config.scales:
            # Raises ConfigError for a style image that is too small.
            self.features.compute_feature_shapes(_scale_size((style_size[0], style_size[1]), fraction))
            self.scales.append(ScaleLoss(_scale_size((height, width), fraction), self.features, config))
        self.register_buffer("content", torch.zeros(1, 3, height, width))
        self._metric_suffix = "_random" if config.weights == "random" else ""

    def phases(self) -> tuple[GradientPhase, ...]:
        if len(self.scales) == 1:
            return (GradientPhase("image", self.canvas, self.loss),)
        return tuple(
            GradientPhase(
                f"scale_{index + 1}",
                self.canvas,
                partial(self.loss, scale_index=index),
                is_active=partial(self._is_scale_active, index),
            )
            for index in range(len(self.scales))
        )

    def _is_scale_active(self, scale_index: int, clock: Clock) -> bool:
        """Return whether the phase of scale `scale_index` is active.

        Each scale has an equal share of the steps, in order.
        """
        return (clock.step - 1) * len(self.scales) // clock.total_steps == scale_index

    def prepare_evaluation(self, dataset: Dataset) -> None:
        """Set the weights of the frozen network. Raises ConfigError."""
        streams = dataset.train.streams
        photographs = [convert_and_scale(streams[name][0][None].to(self.content.device)) for name in STREAMS]
        content, style = self.color_mode.preprocess(*photographs)
        if self.config.weights == "random":
            self.features.init_random_weights([content, style])
        else:
            self.features.load_torchvision_weights(load_weights(self.config.weights), origin=self.config.weights)
        if self.config.equalize_layers:
            self.features.equalize_layers(style)
        self.features.set_fingerprint()

    @torch.no_grad()
    def initialize(self, train_batches: Batches) -> None:
        (photographs,) = train_batches
        content, style = self.color_mode.preprocess(*(photographs[name] for name in STREAMS))
        self.content.copy_(photographs["content"])
        self.canvas.image.copy_(content[:, : self.color_mode.channels])
        for fraction, scale in zip(self.config.scales, self._get_scale_losses(), strict=True):
            size = _scale_size((style.shape[2], style.shape[3]), fraction)
            scale.set_targets(self.features, resize(content, scale.size), resize(style, size))

    def loss(self, batch: Batch, clock: Clock, *, scale_index: int = -1) -> tuple[Tensor, Metrics]:
        """Return the weighted sum (scalar) of content, style and variation losses at one of the scales."""
        losses = self._compute_losses(self._get_scale_losses()[scale_index])
        return losses.pop("loss"), detach_metrics(**losses)

    def _compute_losses(self, scale: ScaleLoss) -> dict[str, Tensor]:
        image = clamp_keep_gradient(self.canvas.image).expand(-1, 3, -1, -1)
        content, style = scale.losses(self.features, image)
        loss = self.config.content_weight * content + self.config.style_weight * style
        terms = {f"content{self._metric_suffix}": content, f"style{self._metric_suffix}": style}
        if self.config.variation_weight:
            terms["variation"] = total_variation(image)
            loss = loss + self.config.variation_weight * terms["variation"]
        return {"loss": loss, **terms}

    def stylize(self) -> Tensor:
        """Return the current image in [0, 1]: (1, 3, height, width)."""
        return self.color_mode.postprocess(clamp_keep_gradient(self.canvas.image), self.content)

    def list_metrics(self) -> Sequence[str]:
        names = ("loss", f"content{self._metric_suffix}", f"style{self._metric_suffix}")
        return (*names, "variation") if self.config.variation_weight else names

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        return {name: float(value) for name, value in self._compute_losses(self._get_scale_losses()[-1]).items()}

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        return {"stylized": self.stylize()[0]}

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        return {"stylized": PictureLabels(is_photograph=True), "comparison": PictureLabels(is_photograph=True)}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        image = self.stylize()
        return {"stylized": image[0], "comparison": concat_horizontally(self.content, examples["style"], image)}

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        if self.config.weights != "random":
            return None
        return (
            "model.weights=random: untrained filters transfer colors and textures only. "
            f"Use model.weights=hed (after `{HED_INSTALL_COMMAND}`) or imagenet for objects."
        )

    def _get_scale_losses(self) -> list[ScaleLoss]:
        return [scale for scale in self.scales if isinstance(scale, ScaleLoss)]


class _ClampKeepGradient(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        points_outward = ((values < 0) & (gradient > 0)) | ((values > 1) & (gradient < 0))
        return gradient.masked_fill(points_outward, 0.0)


def clamp_keep_gradient(values: Tensor) -> Tensor:
    """Return `values` clamped to [0, 1], in the same shape.

    Outside [0, 1] the gradient passes only if a descent step moves the value toward the range. The tutorial clamps
    the image itself at each step. L-BFGS then estimates the curvature from wrong steps, and the loss occasionally
    increases by a factor of a thousand.
    """
    return torch.as_tensor(_ClampKeepGradient.apply(values))


@register_loss("gram", kind="style")
def gram_matrix(features: Tensor) -> Tensor:
    """Return the Gram matrices of features: (batch, c, h, w) → (batch, c, c), divided by batch·c·h·w.

    Gradients are exact only if the incoming gradient is symmetric in the two channel axes. This holds for
    any loss that is symmetric in these axes. The backward pass then needs one matrix product instead of two.
    """
    full_precision = promote_to_float32(features)
    # No autocast: sums over thousands of terms lose precision in bf16.
    # On the meta device, where the memory is computed, torch has no autocast.
    device_type = "cpu" if features.is_meta else features.device.type
    with torch.autocast(device_type, enabled=False):
        if full_precision.is_contiguous():
            flattened = full_precision.flatten(2)
            products = flattened @ flattened.detach().transpose(1, 2)
        else:  # channels last: this order needs no copy of the features or of their gradient
            flattened = full_precision.permute(0, 2, 3, 1).flatten(1, 2)
            products = flattened.detach().transpose(1, 2) @ flattened
        return (2 * products - products.detach()) / features.numel()


@register_loss("moments", kind="style")
def channel_moments(features: Tensor) -> Tensor:
    """Return the mean and deviation of each channel: (batch, c, h, w) → (batch, 2, c) (Li et al. 2017)."""
    values = promote_to_float32(features).flatten(2)
    return torch.stack([values.mean(2), values.var(2, correction=0).add(1e-6).sqrt()], dim=1)


def total_variation(image: Tensor) -> Tensor:
    """Return the mean absolute difference of vertical neighbors plus that of horizontal neighbors (scalar).

    `image` is (batch, channels, height, width). A constant image gives 0.
    """
    return image.diff(dim=2).abs().mean() + image.diff(dim=3).abs().mean()


def concat_horizontally(*images: Tensor) -> Tensor:
    """Return images (1, 3, height, width) side by side, scaled to the height of the first: (3, height, width)."""
    height = images[0].shape[2]
    scaled = [resize(image, (height, max(1, round(image.shape[3] * height / image.shape[2])))) for image in images]
    return torch.cat(
        [
            F.pad(image[0], (PADDING_PIXELS, PADDING_PIXELS, PADDING_PIXELS, PADDING_PIXELS), value=PADDING_VALUE)
            for image in scaled
        ],
        dim=2,
    )


def _scale_size(size: tuple[int, int], fraction: float) -> tuple[int, int]:
    return max(1, round(size[0] * fraction)), max(1, round(size[1] * fraction))
