"""Conditional flow matching (Lipman et al. 2023) on straight paths (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from genexp.capabilities import CanInterpolate
from genexp.config import require
from genexp.data.dataset import DataSpec
from genexp.device import promote_to_float32
from genexp.errors import ConfigError
from genexp.images.grid import make_grid
from genexp.images.latent_walks import make_animation, slerp
from genexp.images.scatter import draw_lines
from genexp.losses.regression import REGRESSION_LOSSES
from genexp.networks.conditional_unet import NORM_GROUPS, ConditionalUNet
from genexp.sharding import gather_rows, local_rows
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    GradientPhase,
    Metrics,
    PictureLabels,
    TechniquePart,
    register_technique,
)
from genexp.techniques._generation import SampleScoringTechnique
from genexp.techniques._named_networks import check_networks, select_network

PREVIEW_ROWS = 8  # rows of the grid of samples; with classes, each class has one column
MAX_PREVIEW_COLUMNS = 10
ANIMATION_STEPS = 24  # frames from noise to image, by Euler's method
HELD_FRAMES = 10  # copies of the last frame
INTERPOLATION_FRAMES = 20
MAX_COMPARED_IMAGES = 250  # for each point of the figure of quality against evaluations
# The guidance is too strong if recall is below the first value and precision above the second one.
LOW_RECALL, HIGH_PRECISION = 0.3, 0.8
RECALL_PREFIX = "test/recall_"

VelocityField = Callable[[Tensor, float], Tensor]  # images, time in [0, 1] → velocities of the images' shape


def euler_step(velocity: VelocityField, images: Tensor, time: float, step: float) -> Tensor:
    """Return images (batch, ...) at `time` + `step`, by the velocity at `time`. First order, one evaluation."""
    return images + step * velocity(images, time)


def midpoint_step(velocity: VelocityField, images: Tensor, time: float, step: float) -> Tensor:
    """Return images (batch, ...) at `time` + `step`, by the velocity in the middle. Second order."""
    middle = images + 0.5 * step * velocity(images, time)
    return images + step * velocity(middle, time + 0.5 * step)


def heun_step(velocity: VelocityField, images: Tensor, time: float, step: float) -> Tensor:
    """Return images (batch, ...) at `time` + `step`, by the mean velocity of both ends. Second order."""
    start = velocity(images, time)
    end = velocity(images + step * start, time + step)
    return images + 0.5 * step * (start + end)


@dataclass(frozen=True)
class Sampler:
    """Numerical method for dx/dt = velocity(x, t)."""

    step: Callable[[VelocityField, Tensor, float, float], Tensor]  # velocity, images, time, step size → images
    evaluations: int  # of the velocity, per step


SAMPLERS = {"euler": Sampler(euler_step, 1), "midpoint": Sampler(midpoint_step, 2), "heun": Sampler(heun_step, 2)}
# (count, device) → times (count,) in [0, 1]
TIME_DISTRIBUTIONS: dict[str, Callable[[int, torch.device], Tensor]] = {
    "uniform": lambda count, device: torch.rand(count, device=device),
    # More steps in the middle of the path, where the velocity is hardest to predict (Esser et al. 2024).
    "logit_normal": lambda count, device: torch.randn(count, device=device).sigmoid(),
}


@dataclass
class FlowMatchingConfig:
    """Keys of conf/model/flow_matching.yaml."""

    loss: str  # name in REGRESSION_LOSSES, of the velocity
    loss_options: dict[str, Any]  # keyword parameters of the loss
    velocity: str | None  # name in NETWORKS; None for the U-Net
    velocity_options: dict[str, Any]  # keyword parameters of that network
    width: int  # channels of the U-Net's first level
    blocks: int  # residual blocks of each level, down and up
    conditional: bool  # whether the velocity depends on the class
    label_dropout: float  # probability that a training step hides the class; guidance requires it
    guidance: float  # weight of classifier-free guidance
    time_distribution: str  # key of TIME_DISTRIBUTIONS
    optimal_transport: bool  # whether noise is paired with images by minibatch optimal transport
    sampler: str  # key of SAMPLERS
    function_evaluations: int  # evaluations of the velocity per image
    compared_evaluations: list[int]  # x axis of the figure of the Fréchet distance; empty: no figure
    evaluation_samples: int  # generated images per evaluation

    def __post_init__(self) -> None:
        REGRESSION_LOSSES.check("loss", self.loss, self.loss_options)
        check_networks(self, "velocity")
        is_valid = self.width > 0 and self.width % NORM_GROUPS == 0
        require(is_valid, "width", self.width, f"must be a multiple of {NORM_GROUPS}")
        require(self.blocks > 0, "blocks", self.blocks, "must be at least 1")
        require(
            0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "must be a probability in [0, 1)"
        )
        require(self.guidance >= 0, "guidance", self.guidance, "must be 0 or more")
        for key, table in (("time_distribution", TIME_DISTRIBUTIONS), ("sampler", SAMPLERS)):
            value = getattr(self, key)
            require(value in table, key, value, f"must be one of {', '.join(table)}")
        counts = self.compared_evaluations
        require(all(count > 0 for count in counts), "compared_evaluations", counts, "must be counts of at least 1")
        per_step = SAMPLERS[self.sampler].evaluations
        is_valid = self.function_evaluations > 0 and self.function_evaluations % per_step == 0
        rule = (
            "must be at least 1"
            if per_step == 1
            else f"must be a multiple of {per_step} with sampler={self.sampler}"
        )
        require(is_valid, "function_evaluations", self.function_evaluations, rule)
        require(self.evaluation_samples > 5, "evaluation_samples", self.evaluation_samples, "must be 6 or more")


@register_technique("flow_matching")
class FlowMatching(SampleScoringTechnique, CanInterpolate):
    """Network that predicts the velocity on straight paths from noise to images, and samplers that integrate it.

    The network uses images in [-1, 1]. An additional class, the null class, means that the class is not given.
    """

    Config = FlowMatchingConfig
    num_examples = 8

    def __init__(self, config: FlowMatchingConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.image_shape = config, spec.image_shape
        self.num_classes = _count_classes(spec) if config.conditional else 0
        self.velocity_loss = REGRESSION_LOSSES.find(config.loss, config.loss_options)
        self.draw_times = TIME_DISTRIBUTIONS[config.time_distribution]
        channels, *size = spec.image_shape
        network = ConditionalUNet(
            channels,
            (size[0], size[1]),
            width=config.width,
            num_blocks=config.blocks,
            num_classes=self.num_classes + 1,
        )
        self.network = select_network("velocity", config, network, spec.image_shape, self.num_classes + 1)

    def phases(self) -> tuple[GradientPhase, ...]:
        return (GradientPhase("velocity", self.network, self.loss),)

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the loss (scalar) of the velocity at random times on straight paths from noise to images."""
        images = 2 * batch["image"] - 1
        noise = torch.randn_like(images)
        if self.config.optimal_transport:
            noise = pair_with_images(noise, images)
        times = self.draw_times(len(images), images.device)
        fraction = times[:, None, None, None]
        path = (1 - fraction) * noise + fraction * images
        velocity = self.network(path, times, self.drop_labels(batch))
        return self.velocity_loss(promote_to_float32(velocity), images - noise), {}

    def drop_labels(self, batch: Batch) -> Tensor:
        """Return the class of each image (batch,), replaced by the null class with probability `label_dropout`."""
        if not self.num_classes:
            return torch.zeros(len(batch["image"]), dtype=torch.long, device=batch["image"].device)
        labels = batch["label"]
        is_dropped = torch.rand(len(labels), device=labels.device) < self.config.label_dropout
        return torch.where(is_dropped, self.num_classes, labels)

    def guided_velocity(self, images: Tensor, time: float, classes: Tensor) -> Tensor:
        """Return velocities with classifier-free guidance (Ho & Salimans 2022), in the shape of `images`.

        With weight w, the result is v(null class) + w · (v(class) - v(null class)). `classes` is (batch,).
        """
        times = torch.full((images.shape[0],), time, device=images.device)
        if not self.num_classes or self.config.guidance == 1:
            return self.network(images, times, classes)
        null_classes = torch.full_like(classes, self.num_classes)
        # One call for both, since a large batch is faster than two small ones.
        velocities = self.network(images.repeat(2, 1, 1, 1), times.repeat(2), torch.cat([classes, null_classes]))
        conditional, unconditional = velocities.unflatten(0, (2, -1))  # not chunk, which fixes the size
        return torch.lerp(unconditional, conditional, self.config.guidance)

    def iter_states(self, noise: Tensor, sampler_name: str, function_evaluations: int) -> Iterator[Tensor]:
        """Yield images in [-1, 1] after each step of the path from `noise`: (count, channels, height, width).

        The classes of the images are 0, 1, … cyclically. All steps have the same length.
        """
        return self._integrate(noise, self.cycle_labels(len(noise)), sampler_name, function_evaluations)

    def _integrate(
        self, noise: Tensor, classes: Tensor, sampler_name: str, function_evaluations: int
    ) -> Iterator[Tensor]:
        sampler = SAMPLERS[sampler_name]
        num_steps = function_evaluations // sampler.evaluations
        images = noise
        for index in range(num_steps):
            images = sampler.step(
                lambda images, time: self.guided_velocity(images, time, classes),
                images,
                index / num_steps,
                1 / num_steps,
            )
            yield images

    def generate(self, noise: Tensor, sampler_name: str, function_evaluations: int) -> Tensor:
        """Return the images in [0, 1] at the end of the path from `noise`, in its shape."""
        *_, images = self.iter_states(noise, sampler_name, function_evaluations)
        return ((images + 1) / 2).clamp(0, 1)

    def cycle_labels(self, count: int) -> Tensor:
        """Return the classes of `count` images, int64 (count,): 0, 1, … cyclically, or the null class alone."""
        return torch.arange(count, device=next(self.network.parameters()).device) % max(1, self.num_classes)

    def draw_noise(self, count: int) -> Tensor:
        """Return standard normal noise (count, channels, height, width)."""
        return torch.randn(count, *self.image_shape, device=next(self.network.parameters()).device)

    def sample(self, count: int) -> Tensor:
        return self.generate(self.draw_noise(count), self.config.sampler, self.config.function_evaluations)

    def list_parts(self, examples: Batch) -> dict[str, TechniquePart]:
        """Return the velocity, for samplers of other programs, and the generator with all its steps."""
        count = len(examples["image"])
        noise, labels, times = self.draw_noise(count), self.cycle_labels(count), torch.rand(count)
        ranges = {"noise": "standard normal", "image": "[0, 1]", "state": "noise at time 0, image in [-1, 1] at 1"}
        last = max(0, self.num_classes - 1)
        ranges |= {"time": "[0, 1]", "label": f"0 to {last}, or {self.num_classes} for any class"}

        def generate(noise: Tensor, label: Tensor) -> Tensor:
            evaluations = self.config.function_evaluations
            *_, images = self._integrate(noise, label, self.config.sampler, evaluations)
            return ((images + 1) / 2).clamp(0, 1)

        inputs = {"state": noise, "time": times, "label": labels}
        return {
            "velocity": TechniquePart(self.network, inputs, "velocity", ranges),
            "generator": TechniquePart(generate, {"noise": noise, "label": labels}, "image", ranges),
        }

    def interpolate(self, examples: Batch, num_frames: int) -> Tensor:
        """Return images (frames, paths, c, h, w) for noise on great circles. A path keeps its class."""
        start = self.draw_noise(len(examples["image"])).flatten(1)
        end = start.roll(-1, dims=0)
        noise = [
            slerp(start, end, weight).unflatten(1, self.image_shape)
            for weight in torch.linspace(0, 1, num_frames).tolist()
        ]
        return torch.stack(
            [self.generate(part, self.config.sampler, self.config.function_evaluations) for part in noise]
        )

    def list_metrics(self) -> Sequence[str]:
        return self.generation_metrics.list_names(has_labels=bool(self.num_classes))

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        features = self.generation_metrics.generate_features(self.sample)
        scores = self.generation_metrics.compute_scores(test_batches, features)
        if not self.num_classes:
            return scores
        labels = torch.cat([self.cycle_labels(len(part)) for part in features])
        return {**scores, **self.generation_metrics.label_accuracy(torch.cat(features), labels)}

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        version = next(
            (name.removeprefix(RECALL_PREFIX) for name in metrics if name.startswith(RECALL_PREFIX)), None
        )
        if version is None or not self.num_classes or self.config.guidance <= 1:
            return None
        recall, precision = metrics[f"{RECALL_PREFIX}{version}"], metrics[f"test/precision_{version}"]
        # Early in a run recall and precision are both low. Guidance does not cause this.
        if recall >= LOW_RECALL or precision < HIGH_PRECISION:
            return None
        return (
            f"guidance is too strong: precision is above {HIGH_PRECISION}, but samples cover few of the "
            f"real images (recall below {LOW_RECALL}). Use a smaller model.guidance."
        )

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        columns = self.preview_columns
        return {"samples": make_grid(self.sample(PREVIEW_ROWS * columns), columns)}

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        labels = PictureLabels(columns=class_names if len(class_names) == self.preview_columns else ())
        return {"samples": labels, "noise_to_images": labels}

    @property
    def preview_columns(self) -> int:
        """Columns of image grids: one for each class if there are few."""
        return self.num_classes if 1 < self.num_classes <= MAX_PREVIEW_COLUMNS else PREVIEW_ROWS

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        columns = self.preview_columns
        noise = self.draw_noise(PREVIEW_ROWS // 2 * columns)
        states = [noise, *self.iter_states(noise, "euler", ANIMATION_STEPS)]
        states += HELD_FRAMES * states[-1:]
        gallery = {
            "noise_to_images": make_animation(((torch.stack(states) + 1) / 2).clamp(0, 1), columns),
            "interpolation": make_animation(self.interpolate(examples, INTERPOLATION_FRAMES)),
        }
        if self.config.compared_evaluations:
            gallery["quality_by_evaluations"] = self.plot_quality()
        return gallery

    def plot_quality(self) -> Tensor:
        """Return a plot (3, height, width) of the Fréchet distance against the evaluations of each sampler."""
        metrics = self.generation_metrics
        num_images = min(MAX_COMPARED_IMAGES, self.config.evaluation_samples)
        noise = self.draw_noise(num_images)
        lines: dict[str, dict[int, float]] = {}
        for name, sampler in SAMPLERS.items():
            counts = [count for count in self.config.compared_evaluations if count % sampler.evaluations == 0]
            lines[name] = {
                count: metrics.compute_frechet([metrics.extract_features(self.generate(noise, name, count))])
                for count in sorted(counts)
            }
        y_label = f"Fréchet distance of {num_images} images"
        return draw_lines(lines, x_label="evaluations of the velocity per image", y_label=y_label)


def pair_with_images(noise: Tensor, images: Tensor) -> Tensor:
    """Return `noise` (batch, ...) in the order with the smallest sum of squared distances to `images`.

    This is optimal transport between the samples of a batch (Tong et al. 2024). Fewer paths cross then.
    """
    noise, images = gather_rows(noise), gather_rows(images)
    # The squared norms in the distance |x - y|² = |x|² + |y|² - 2 x·y do not depend on the order.
    cost = -images.flatten(1) @ noise.flatten(1).T
    return local_rows(noise[_Assignment.apply(cost)])


class _Assignment(torch.autograd.Function):
    """Column of each row in the assignment of least cost: (rows, rows) → int64 (rows,). It works under vmap."""

    @staticmethod
    def forward(cost: Tensor) -> Tensor:
        columns = linear_sum_assignment(cost.numpy(force=True))[1]
        return torch.from_numpy(columns).to(cost.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], cost: Tensor) -> tuple[Tensor, int]:
        return torch.stack([_Assignment.forward(member_cost) for member_cost in cost.unbind(dims[0] or 0)]), 0


def _count_classes(spec: DataSpec) -> int:
    """Return the number of classes of a data set. Raises ConfigError if it has no labels or no class names."""
    if "label" not in spec.shapes or not spec.class_names:
        raise ConfigError(
            f"model.conditional=true: dataset={spec.name} has no classes. Use model.conditional=false."
        )
    return len(spec.class_names)
