"""Style transfer against the code of the tutorials: loss modules inside the network, weights not frozen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark import memory
from benchmark.clock import read_seconds
from benchmark.compose import compose_config
from benchmark.isolated_process import run_in_new_process
from benchmark.paired_rounds import PairedComparison, compare, run_in_thread, run_paired_rounds
from genexp.networks.vgg import IMAGENET_MEAN, IMAGENET_STD
from genexp.runs.build import Run, build_run
from genexp.runs.config import bind_experiment
from genexp.technique import Clock, GradientPhase
from genexp.training.trainer import initialize_technique

CLOSURE_CALLS = 6  # evaluations of the loss and its gradient in a round; a step of genexp makes one
IMAGE_SIZES = (256, 512)
WARMUP_IMAGE_SIZE = 64  # pixels
PRECISIONS = ("fp32", "bf16")
STYLE_WEIGHT = 1e5


def run(rounds: int) -> list[PairedComparison]:
    """Measure L-BFGS iterations/s and memory. Raises AssertionError if the initial losses differ."""
    rows = []
    for size in IMAGE_SIZES:
        reference_run, rival = run_in_thread(partial(_prepare_run, size, "fp32")), "tutorial formulation"
        run_in_thread(partial(_check_losses, reference_run))
        rivals = {rival: partial(_measure_tutorial, reference_run)}
        for precision in PRECISIONS:
            task = f"style transfer, {size} pixels, {precision}"
            rows += run_paired_rounds(
                task, partial(_measure_genexp, size, precision), rivals, rounds=rounds, unit="it/s"
            )
        if memory.can_measure():
            rows += [_compare_memory(size, precision, rival) for precision in PRECISIONS]
    return rows


def _compare_memory(size: int, precision: str, rival: str) -> PairedComparison:
    """Compare the peak memory of steps, in one round: starting a process takes as long as many steps."""
    ours, theirs = (run_in_new_process(_measure_step_memory, size, kind) for kind in (precision, None))
    return compare(f"style transfer, {size} pixels, {precision}, memory", rival, [ours], [theirs], unit="MB")


def _measure_step_memory(size: int, precision: str | None) -> float:
    """Return the peak memory in MB: of genexp, or of the tutorial formulation if `precision` is None."""
    _measure_tutorial(_prepare_run(WARMUP_IMAGE_SIZE, "fp32"))  # excludes the memory that libraries allocate once
    run = _prepare_run(size, precision or "fp32")
    return memory.measure_peak_megabytes(partial(_measure_steps if precision else _measure_tutorial, run))


def _prepare_run(size: int, precision: str) -> Run:
    """Return a run of the reference preset with its targets set. Random filters cost the same as trained ones."""
    overrides = [
        "experiment=style_transfer_reference",
        "model.weights=random",
        f"dataset.size={size}",
        f"trainer.precision={precision}",
        "device=cpu",
    ]
    run = build_run(bind_experiment(compose_config(*overrides)), None)
    initialize_technique(run.learner, run.data.train_batches, run.config.seed)
    return run


def _measure_genexp(size: int, precision: str) -> float:
    return _measure_steps(_prepare_run(size, precision))


def _measure_steps(run: Run) -> float:
    batch = next(iter(run.data.batch_source.iter_batches(1)))
    started_at = read_seconds()
    for step in range(1, CLOSURE_CALLS + 1):
        run.learner.step(batch, run.data.train_batches, Clock(step, 300, 1))
    return CLOSURE_CALLS / (read_seconds() - started_at)


class _Normalization(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return (image - torch.tensor(IMAGENET_MEAN).view(-1, 1, 1)) / torch.tensor(IMAGENET_STD).view(-1, 1, 1)


class _FeatureLoss(nn.Module):
    """Identity module that keeps the mean squared error between a statistic of the features and its target."""

    def __init__(self, statistic: Callable[[Tensor], Tensor], target: Tensor) -> None:
        super().__init__()
        self.statistic, self.target = statistic, statistic(target).detach()
        self.loss = torch.zeros(())

    def forward(self, features: Tensor) -> Tensor:
        self.loss = F.mse_loss(self.statistic(features), self.target)
        return features


def _gram(features: Tensor) -> Tensor:
    flat = features.view(features.shape[0] * features.shape[1], -1)
    return flat @ flat.t() / features.numel()


def _build_tutorial_network(run: Run) -> tuple[nn.Sequential, list[_FeatureLoss], list[_FeatureLoss], Tensor]:
    """Return the tutorials' network, its content and style losses, and the content image.

    Its filters are copies of those of the technique.
    """
    technique: Any = run.learner.technique
    (photographs,) = run.data.train_batches
    network, content_losses, style_losses = (
        nn.Sequential(_Normalization()),
        list[_FeatureLoss](),
        list[_FeatureLoss](),
    )
    for name, layer in technique.features.layers.items():
        if isinstance(layer, nn.Conv2d):
            copy = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
            copy.load_state_dict(layer.state_dict())
            network.append(copy)
        else:
            network.append(nn.ReLU() if name.startswith("relu") else nn.MaxPool2d(2))
        insertions: list[tuple[Any, list[_FeatureLoss], Callable[[Tensor], Tensor], str]]
        insertions = [(technique.config.content_layers, content_losses, nn.Identity(), "content")]
        insertions += [(technique.config.style_layers, style_losses, _gram, "style")]
        for layers, losses, statistic, photograph in insertions:
            if name in layers:
                with torch.no_grad():
                    losses.append(_FeatureLoss(statistic, network(photographs[photograph])))
                network.append(losses[-1])
    return network, content_losses, style_losses, photographs["content"]


def _measure_tutorial(run: Run) -> float:
    network, content_losses, style_losses, content = _build_tutorial_network(run)
    image = content.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([image], max_iter=CLOSURE_CALLS, max_eval=CLOSURE_CALLS)

    def closure() -> Tensor:
        with torch.no_grad():
            image.clamp_(0, 1)
        optimizer.zero_grad()
        network(image)
        loss = STYLE_WEIGHT * torch.stack([each.loss for each in style_losses]).sum()
        loss = loss + torch.stack([each.loss for each in content_losses]).sum()
        loss.backward()
        losses.append(loss.item())
        return loss

    losses: list[float] = []
    started_at = read_seconds()
    optimizer.step(closure)
    return len(losses) / (read_seconds() - started_at)


def _check_losses(run: Run) -> None:
    network, content_losses, style_losses, content = _build_tutorial_network(run)
    with torch.no_grad():
        network(content)
        (phase,) = (phase for phase in run.learner.phases if isinstance(phase, GradientPhase))
        ours = float(phase.loss({}, Clock(1, 300, 1))[0])
    theirs = float(
        STYLE_WEIGHT * sum(each.loss for each in style_losses) + sum(each.loss for each in content_losses)
    )
    assert abs(ours - theirs) < 1e-3 * theirs, f"not the same work: {ours} and {theirs}"
