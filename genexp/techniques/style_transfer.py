"""Neural style transfer (Gatys, Ecker & Bethge 2016): an image learned so that its features fit two others'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.capabilities import CanStylize
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.images.color import COLOURS
from genexp.images.grid import BACKGROUND, GAP
from genexp.images.resize import resized
from genexp.networks.vgg import LAYERS, POOLINGS, Vgg19, trained_weights
from genexp.precision import promote_to_float32
from genexp.technique import Batch, Batches, Clock, GradientPhase, Metrics, Technique, register, detach_metrics


@dataclass
class StyleTransferConfig:
    """conf/model/style_transfer.yaml."""

    weights: str  # imagenet, random, or a file
    pooling: str
    content_layers: list[str]
    style_layers: list[str]
    content_weight: float
    style_weight: float
    variation_weight: float
    scales: list[float]  # parts of the full size, one after the other; the last is 1
    preserve_colour: str

    def __post_init__(self) -> None:
        for key in ("content_layers", "style_layers"):
            layers = getattr(self, key)
            known = bool(layers) and set(layers) <= set(LAYERS)
            require(known, key, layers, "name layers such as conv_4, relu_4 or pool_4, up to 16")
        for key in ("content_weight", "style_weight", "variation_weight"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "use 0 or more")
        inside = bool(self.scales) and all(0 < scale <= 1 for scale in self.scales) and self.scales[-1] == 1
        require(inside, "scales", self.scales, "use parts of the size in (0, 1], the last one 1")
        require(self.pooling in POOLINGS, "pooling", self.pooling, f"choose one of {', '.join(POOLINGS)}")
        choices = ", ".join(COLOURS)
        require(
            self.preserve_colour in COLOURS, "preserve_colour", self.preserve_colour, f"choose one of {choices}"
        )


class Scale(nn.Module):
    """One size at which images are compared, and what the features should be there."""

    def __init__(self, size: tuple[int, int], features: Vgg19, config: StyleTransferConfig) -> None:
        """`size` is (height, width), of which the content's and the style's features are taken."""
        super().__init__()
        self.size = size
        shapes = features.shapes(size)
        for layer in config.content_layers:
            self.register_buffer(f"content_{layer}", torch.zeros(1, *shapes[layer]))
        for layer in config.style_layers:
            self.register_buffer(f"style_{layer}", torch.zeros(1, LAYERS[layer], LAYERS[layer]))
        self.content_layers, self.style_layers = config.content_layers, config.style_layers

    def aim(self, features: Vgg19, content: Tensor, style: Tensor) -> None:
        """Take the targets from two images (1, 3, height, width)."""
        for layer, seen in features(content):
            if layer in self.content_layers:
                self.get_buffer(f"content_{layer}").copy_(seen)
        for layer, seen in features(style):
            if layer in self.style_layers:
                self.get_buffer(f"style_{layer}").copy_(gram(seen))

    def compare(self, features: Vgg19, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far the content and the style of `image` are from the targets, summed over layers."""
        content, style = [], []
        for layer, seen in features(resized(image, self.size)):
            if layer in self.content_layers:
                content.append(F.mse_loss(seen, self.get_buffer(f"content_{layer}")))
            if layer in self.style_layers:
                style.append(F.mse_loss(gram(seen), self.get_buffer(f"style_{layer}")))
        return torch.stack(content).sum(), torch.stack(style).sum()


class Canvas(nn.Module):
    """The image that is learned. Its values may leave [0, 1]: whoever looks at it sees it `confined`."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.full((1, *shape), 0.5))


@register
class StyleTransfer(Technique, CanStylize):
    """Moves an image, beginning at the content, to the style's Gram matrices.

    It is learned at full size throughout. Phases that see it from afar, scaled down, settle the coarse structure
    first; each has an optimizer of its own, since curvature measured at one scale misleads at another.
    """

    Config = StyleTransferConfig
    name = "style_transfer"
    objective = "loss"
    example_count = 1

    content: Tensor

    def __init__(self, config: StyleTransferConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        _, height, width = spec.shape("content")
        _, *style_size = spec.shape("style")
        self.features = Vgg19([*config.content_layers, *config.style_layers], pooling=config.pooling)
        self.colour = COLOURS[config.preserve_colour]
        self.canvas = Canvas((self.colour.channels, height, width))
        self.scales = nn.ModuleList()
        for part in config.scales:
            self.features.shapes(_scaled((style_size[0], style_size[1]), part))  # raises where it is too small
            self.scales.append(Scale(_scaled((height, width), part), self.features, config))
        self.register_buffer("content", torch.zeros(1, 3, height, width))
        self._suffix = "_random" if config.weights == "random" else ""

    def phases(self) -> tuple[GradientPhase, ...]:
        if len(self.scales) == 1:
            return (GradientPhase("image", self.canvas, self.loss),)
        return tuple(
            GradientPhase(
                f"scale_{index + 1}",
                self.canvas,
                partial(self.loss, index=index),
                is_active=partial(self._is_at, index),
            )
            for index in range(len(self.scales))
        )

    def _is_at(self, index: int, clock: Clock) -> bool:
        """Return whether scale `index` has its turn: each has an equal part of the steps."""
        return (clock.step - 1) * len(self.scales) // clock.total_steps == index

    @torch.no_grad()
    def initialize(self, samples: Batches) -> None:
        (photographs,) = samples
        content, style = self.colour.prepare(photographs["content"], photographs["style"])
        if self.config.weights == "random":
            self.features.randomise([content, style])
        else:
            self.features.load(trained_weights(self.config.weights), origin=self.config.weights)
        self.content.copy_(photographs["content"])
        self.canvas.image.copy_(content[:, : self.colour.channels])
        for part, scale in zip(self.config.scales, self._scales(), strict=True):
            size = _scaled((style.shape[2], style.shape[3]), part)
            scale.aim(self.features, resized(content, scale.size), resized(style, size))

    def loss(self, batch: Batch, clock: Clock, *, index: int = -1) -> tuple[Tensor, Metrics]:
        losses = self._losses(self._scales()[index])
        return losses.pop("loss"), detach_metrics(**losses)

    def _losses(self, scale: Scale) -> dict[str, Tensor]:
        image = confined(self.canvas.image).expand(-1, 3, -1, -1)
        content, style = scale.compare(self.features, image)
        loss = self.config.content_weight * content + self.config.style_weight * style
        parts = {f"content{self._suffix}": content, f"style{self._suffix}": style}
        if self.config.variation_weight:
            parts["variation"] = total_variation(image)
            loss = loss + self.config.variation_weight * parts["variation"]
        return {"loss": loss, **parts}

    def stylize(self) -> Tensor:
        """Return the image as it is now: (1, 3, height, width)."""
        return self.colour.restore(confined(self.canvas.image), self.content)

    def evaluate(self, samples: Batches) -> dict[str, float]:
        return {name: float(value) for name, value in self._losses(self._scales()[-1]).items()}

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        return {"stylisation": self.stylize()[0]}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        image = self.stylize()
        return {"stylised": image[0], "comparison": side_by_side(self.content, examples["style"], image)}

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        if self.config.weights != "random":
            return None
        return (
            "model.weights=random: untrained filters transfer colours and textures, but know no objects; "
            "for the real thing set model.weights=FILE to a copy of torchvision's vgg19 weights"
        )

    def _scales(self) -> list[Scale]:
        return [scale for scale in self.scales if isinstance(scale, Scale)]


class _Confined(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        leads_away = ((values < 0) & (gradient > 0)) | ((values > 1) & (gradient < 0))
        return gradient.masked_fill(leads_away, 0.0)


def confined(values: Tensor) -> Tensor:
    """Return values clamped to [0, 1], with a gradient that never leads further away from it, but back.

    To clamp the image itself at each step, as the source does, is to move it behind the optimizer's back: L-BFGS
    takes the steps for what they were not, and the loss now and then rises a thousandfold.
    """
    return torch.as_tensor(_Confined.apply(values))


def gram(features: Tensor) -> Tensor:
    """Return the products of channels over places: (batch, c, h, w) → (batch, c, c), divided by batch·c·h·w.

    Gradients are right where what comes back is symmetric, as it is of any loss that treats both channels of a
    product alike: it takes one product more then, and not two, and their sum.
    """
    wide = promote_to_float32(features)
    with torch.autocast(features.device.type, enabled=False):  # sums over thousands of places need all digits
        if wide.is_contiguous():
            places = wide.flatten(2)
            products = places @ places.detach().transpose(1, 2)
        else:  # channels last: so neither the features nor their gradient is brought into another order
            channels = wide.permute(0, 2, 3, 1).flatten(1, 2)
            products = channels.detach().transpose(1, 2) @ channels
        return (2 * products - products.detach()) / features.numel()


def total_variation(image: Tensor) -> Tensor:
    """Return the mean difference of neighbours, down and across: it is 0 for a flat image."""
    return image.diff(dim=2).abs().mean() + image.diff(dim=3).abs().mean()


def side_by_side(*images: Tensor) -> Tensor:
    """Return images (1, 3, height, width) in one row (3, height, width), brought to the first one's height."""
    height = images[0].shape[2]
    scaled = [
        resized(image, (height, max(1, round(image.shape[3] * height / image.shape[2])))) for image in images
    ]
    return torch.cat([F.pad(image[0], (GAP, GAP, GAP, GAP), value=BACKGROUND) for image in scaled], dim=2)


def _scaled(size: tuple[int, int], part: float) -> tuple[int, int]:
    return max(1, round(size[0] * part)), max(1, round(size[1] * part))
