"""Learners of one technique whose weights are rows of common tensors, and who learn in one computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genexp.ensemble.compatibility import Numbers, UnlikeError
from genexp.ensemble.optimizer import RowsOptimizer
from genexp.ensemble.random_draws import Draws, Generators
from genexp.ensemble.tensors import share
from genexp.technique import Batch, Batches, Clock, Descent, Metrics, Refit
from genexp.training.learner import Learner

RowMetrics = dict[str, Tensor]  # name → detached (rows,)


class Stack:
    """Steps several learners as one. Row i is then what learner i would be had it stepped alone.

    The learners stay whole: their techniques, averages and (after `publish`) optimizers are rows of what is
    computed here, so that they can be looked at, judged and saved at any time. Raises UnlikeError where they
    cannot be one computation.
    """

    def __init__(self, learners: Sequence[Learner], seeds: Sequence[int]) -> None:
        self.learners, self.seeds = learners, seeds
        first = learners[0]
        self.device = first.device
        techniques = [learner.technique for learner in learners]
        self._generators = [Generators() for _ in learners]
        if not any(isinstance(phase, Descent) for phase in first.phases):
            techniques = []  # nothing is computed as one
        self.numbers = Numbers(techniques)
        self._number_values = self.numbers.stacked(self.device)
        self._parameters, self._buffers = share(techniques)
        self._averages = share([learner.shown for learner in learners]) if first.average is not None else None
        self._called = _Called(first.technique)
        self._index = torch.arange(len(learners), device=self.device)
        self._names = {id(weight): name for name, weight in first.technique.named_parameters()}
        self._leaves: dict[str, dict[str, Tensor]] = {}  # phase → its learner's parameters, to be learnt
        self._optimizers: dict[str, RowsOptimizer] = {}
        for phase in first.phases:
            if isinstance(phase, Descent):
                self._prepare(phase)

    def _prepare(self, phase: Descent) -> None:
        names = [self._names[id(weight)] for weight in phase.learner.parameters() if weight.requires_grad]
        leaves = {name: self._parameters[name].detach().requires_grad_() for name in names}
        parameters = [dict(learner.technique.named_parameters()) for learner in self.learners]
        self._leaves[phase.name] = leaves
        self._optimizers[phase.name] = RowsOptimizer(
            [learner.configs[phase.name] for learner in self.learners],
            [learner.optimizers[phase.name] for learner in self.learners],
            leaves,
            parameters,
        )

    def step(self, batch: Batch, shared: bool, whole: Batches, clock: Clock) -> RowMetrics:
        """Run every phase that is due; see `Learner.step`.

        Each stream of `batch` is (rows, batch, ...), or (batch, ...) where it is `shared` by all rows.
        """
        for seed, generators in zip(self.seeds, self._generators, strict=True):
            generators.seed(seed, clock.step)
        metrics: RowMetrics = {}
        for place, phase in enumerate(self.learners[0].phases):
            if clock.step % phase.every or not self._is_due(place, clock):
                continue
            if isinstance(phase, Refit):
                metrics.update(self._refit(place, batch, shared, whole, clock))
            else:
                metrics.update(self._descend(phase, batch, shared, clock))
        self._average(clock)
        return metrics

    def publish(self) -> None:
        """Make the learners whole, for whoever looks at them or saves them."""
        for optimizer in self._optimizers.values():
            optimizer.publish()

    def losses(self, phase: Descent, batch: Batch, shared: bool, clock: Clock) -> tuple[Tensor, RowMetrics]:
        """Return each row's loss (rows,) and metrics. Raises UnlikeError where vmap cannot compute them."""
        leaves = self._leaves[phase.name]
        parameters = {name: leaves.get(name, weight) for name, weight in self._parameters.items()}

        def one(
            parameters: dict[str, Tensor],
            buffers: dict[str, Tensor],
            numbers: list[Tensor],
            batch: Batch,
            row: Tensor,
        ) -> tuple[Tensor, RowMetrics, dict[str, Tensor]]:
            held = {f"technique.{name}": tensor for name, tensor in {**parameters, **buffers}.items()}
            with self.numbers.replaced(numbers), Draws(self._generators, self.numbers, row):
                loss, extra = functional_call(self._called, held, (phase.loss, batch, clock))
            # What was changed in place has changed the common tensor; what was replaced is handed out.
            now = {name: held[f"technique.{name}"] for name in buffers}
            return loss, extra, {name: buffer for name, buffer in now.items() if buffer is not buffers[name]}

        every = torch.vmap(one, in_dims=(0, 0, 0, None if shared else 0, 0), randomness="error")
        loss, extra, replaced = every(parameters, self._buffers, self._number_values, batch, self._index)
        for name, buffer in replaced.items():
            self._buffers[name].copy_(buffer)
        return loss, extra

    def _descend(self, phase: Descent, batch: Batch, shared: bool, clock: Clock) -> RowMetrics:
        learner, leaves = self.learners[0], self._leaves[phase.name]
        for leaf in leaves.values():
            leaf.grad = None
        with learner.arithmetic():
            with learner.autocast():
                losses, extra = self.losses(phase, batch, shared, clock)
            # Row i of the gradient of the sum is the gradient of row i: nothing else depends on its weights.
            losses.sum().backward(inputs=list(leaves.values()))
        metrics = {learner.loss_names[phase.name]: losses.detach(), **extra}
        if learner.settings.gradient_clip is not None:
            gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
            metrics[f"{phase.name}_gradient_norm"] = clip(gradients, learner.settings.gradient_clip)
        self._optimizers[phase.name].step(clock)
        return metrics

    def _refit(self, place: int, batch: Batch, shared: bool, whole: Batches, clock: Clock) -> RowMetrics:
        """Refit row by row, each on its own technique: closed forms differ in how many passes they take."""
        found: list[Metrics] = []
        for row, (learner, generators) in enumerate(zip(self.learners, self._generators, strict=True)):
            phase = learner.phases[place]
            assert isinstance(phase, Refit)
            seen = batch if shared else {name: stream[row] for name, stream in batch.items()}
            with torch.no_grad(), generators.as_global(self.device):
                found.append(phase.refit(whole if phase.whole else seen, clock))  # type: ignore[arg-type]
        return {name: torch.stack([metrics[name] for metrics in found]) for name in found[0]}

    def _is_due(self, place: int, clock: Clock) -> bool:
        answers = {learner.phases[place].when(clock) for learner in self.learners}
        if len(answers) > 1:
            raise UnlikeError(f"phase {self.learners[0].phases[place].name} is due at different steps")
        return answers.pop()

    @torch.no_grad()
    def _average(self, clock: Clock) -> None:
        if self._averages is None:
            return
        average = self.learners[0].average
        assert average is not None
        parameters, buffers = self._averages
        if parameters:
            towards = list(self._parameters.values())
            torch._foreach_lerp_(list(parameters.values()), towards, 1 - average.decay_at(clock))
        if buffers:
            torch._foreach_copy_(list(buffers.values()), list(self._buffers.values()))


class _Called(nn.Module):
    """A technique as `functional_call` wants it: calling it calls the function given."""

    def __init__(self, technique: nn.Module) -> None:
        super().__init__()
        self.technique = technique

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function` does, which belongs to the technique."""
        return function(*arguments)


def clip(gradients: Sequence[Tensor], largest: float) -> Tensor:
    """Scale each row of gradients (rows, ...) to a norm of at most `largest`; return the norms before (rows,)."""
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    total = torch.linalg.vector_norm(norms, dim=0)
    factors = (largest / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
    return total
