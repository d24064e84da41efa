"""Style transfer against the formulation of the tutorials: a stack of loss modules, its weights not frozen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark import memory
from benchmark.clock import now
from benchmark.compose import configuration
from benchmark.isolated_process import apart
from benchmark.paired_rounds import Comparison, alone, compare, compete
from genexp.networks.vgg import DEVIATION, MEAN
from genexp.runs.build import Run, build_run
from genexp.technique import Clock, Descent
from genexp.training.trainer import begin

CALLS = 6  # of the closure in a round
SIZES = (256, 512)
SMALL = 64  # pixels
PRECISIONS = ("fp32", "bf16")
STYLE_WEIGHT = 1e5


def run(rounds: int) -> list[Comparison]:
    """Measure L-BFGS iterations/s and memory. Raises AssertionError where both begin with different losses."""
    rows = []
    for size in SIZES:
        built, rival = alone(partial(_begun, size, "fp32")), "tutorial formulation"
        alone(partial(_check, built))
        rivals = {rival: partial(_tutorial, built)}
        for precision in PRECISIONS:
            task = f"style transfer, {size} pixels, {precision}"
            rows += compete(task, partial(_ours, size, precision), rivals, rounds=rounds, unit="it/s")
        if memory.is_told():
            rows += [_memory(size, precision, rival) for precision in PRECISIONS]
    return rows


def _memory(size: int, precision: str, rival: str) -> Comparison:
    """Compare the memory of steps, in one round: a process takes as long as many steps."""
    ours, theirs = (apart(_taken, size, kind) for kind in (precision, None))
    return compare(f"style transfer, {size} pixels, {precision}, memory", rival, [ours], [theirs], unit="MB")


def _taken(size: int, precision: str | None) -> float:
    """Return megabytes: ours, or, without a precision, the tutorials'."""
    _tutorial(_begun(SMALL, "fp32"))  # what libraries take once is neither's
    built = _begun(size, precision or "fp32")
    return memory.taken(partial(_steps if precision else _tutorial, built))


def _begun(size: int, precision: str) -> Run:
    """Return a run of the reference preset whose targets are set. Its filters are random: the work is the same."""
    overrides = [
        "experiment=style_transfer_reference",
        "model.weights=random",
        f"dataset.size={size}",
        f"trainer.precision={precision}",
        "device=cpu",
    ]
    built = build_run(configuration(*overrides), None)
    begin(built.learner, built.material.train, built.seed)
    return built


def _ours(size: int, precision: str) -> float:
    return _steps(_begun(size, precision))


def _steps(built: Run) -> float:
    batch = next(iter(built.material.feed.batches(1)))
    begun = now()
    for step in range(1, CALLS + 1):
        built.learner.step(batch, built.material.train, Clock(step, 300, 1))
    return CALLS / (now() - begun)


class _Normalised(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return (image - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(DEVIATION).view(-1, 1, 1)


class _Compared(nn.Module):
    """Hands features through, and keeps how far what `look` sees of them is from the target."""

    def __init__(self, look: Callable[[Tensor], Tensor], target: Tensor) -> None:
        super().__init__()
        self.look, self.target = look, look(target).detach()
        self.loss = torch.zeros(())

    def forward(self, features: Tensor) -> Tensor:
        self.loss = F.mse_loss(self.look(features), self.target)
        return features


def _gram(features: Tensor) -> Tensor:
    flat = features.view(features.shape[0] * features.shape[1], -1)
    return flat @ flat.t() / features.numel()


def _stack(built: Run) -> tuple[nn.Sequential, list[_Compared], list[_Compared], Tensor]:
    """Return the tutorials' network on copies of our filters, its losses, and the content."""
    technique: Any = built.learner.technique
    (photographs,) = built.material.train
    network, contents, styles = nn.Sequential(_Normalised()), list[_Compared](), list[_Compared]()
    for name, layer in technique.features.layers.items():
        if isinstance(layer, nn.Conv2d):
            copy = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
            copy.load_state_dict(layer.state_dict())
            network.append(copy)
        else:
            network.append(nn.ReLU() if name.startswith("relu") else nn.MaxPool2d(2))
        looks: list[tuple[Any, list[_Compared], Callable[[Tensor], Tensor], str]]
        looks = [(technique.config.content_layers, contents, nn.Identity(), "content")]
        looks += [(technique.config.style_layers, styles, _gram, "style")]
        for layers, losses, look, photograph in looks:
            if name in layers:
                with torch.no_grad():
                    losses.append(_Compared(look, network(photographs[photograph])))
                network.append(losses[-1])
    return network, contents, styles, photographs["content"]


def _tutorial(built: Run) -> float:
    network, contents, styles, content = _stack(built)
    image = content.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([image], max_iter=CALLS, max_eval=CALLS)

    def closure() -> Tensor:
        with torch.no_grad():
            image.clamp_(0, 1)
        optimizer.zero_grad()
        network(image)
        loss = STYLE_WEIGHT * torch.stack([each.loss for each in styles]).sum()
        loss = loss + torch.stack([each.loss for each in contents]).sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    calls: list[float] = []
    begun = now()
    optimizer.step(closure)
    return len(calls) / (now() - begun)


def _check(built: Run) -> None:
    network, contents, styles, content = _stack(built)
    with torch.no_grad():
        network(content)
        (phase,) = (phase for phase in built.learner.phases if isinstance(phase, Descent))
        ours = float(phase.loss({}, Clock(1, 300, 1))[0])
    theirs = float(STYLE_WEIGHT * sum(each.loss for each in styles) + sum(each.loss for each in contents))
    assert abs(ours - theirs) < 1e-3 * theirs, f"not the same work: {ours} and {theirs}"
