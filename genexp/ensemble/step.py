"""Training step of an ensemble: several learners whose weights are slices of stacked tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genexp.ensemble.compatibility import IncompatibleRunsError, VaryingHyperparameters
from genexp.ensemble.optimizer import EnsembleOptimizer
from genexp.ensemble.random_draws import EnsembleFunctionMode, MemberGenerators
from genexp.technique import Batch, Batches, Clock, ClosedFormPhase, GradientPhase, Metrics
from genexp.training.learner import Learner

MemberMetrics = dict[str, Tensor]  # name → detached (members,)


class EnsembleStep:
    """Vectorized `Learner.step` of several learners. Each learner changes as it would in a single run.

    The learners' techniques, EMAs and (after `update_members`) optimizers are views of the stacked tensors.
    They can therefore be evaluated and saved at any time. Raises IncompatibleRunsError where the learners differ
    in more than seeds, weights and floats.
    """

    def __init__(self, learners: Sequence[Learner], seeds: Sequence[int]) -> None:
        self.learners, self.seeds = learners, seeds
        first = learners[0]
        self.device = first.device
        techniques = [learner.technique for learner in learners]
        self._generators = [MemberGenerators() for _ in learners]
        if not any(isinstance(phase, GradientPhase) for phase in first.phases):
            techniques = []  # closed-form phases run on each learner by itself
        self.hyperparameters = VaryingHyperparameters(techniques)
        self._hyperparameter_values = self.hyperparameters.stack_values(self.device)
        self._parameters, self._buffers = stack_shared_state(techniques)
        self._ema_tensors = (
            stack_shared_state([learner.eval_technique for learner in learners]) if first.ema is not None else None
        )
        self._function_module = _FunctionModule(first.technique)
        self._member_indices = torch.arange(len(learners), device=self.device)
        self._parameter_names = {id(weight): name for name, weight in first.technique.named_parameters()}
        self._leaves: dict[str, dict[str, Tensor]] = {}  # phase → trainable parameters (members, ...) by name
        self._optimizers: dict[str, EnsembleOptimizer] = {}
        for phase in first.phases:
            if isinstance(phase, GradientPhase):
                self._add_optimizer(phase)

    def _add_optimizer(self, phase: GradientPhase) -> None:
        names = [self._parameter_names[id(weight)] for weight in phase.module.parameters() if weight.requires_grad]
        leaves = {name: self._parameters[name].detach().requires_grad_() for name in names}
        member_parameters = [dict(learner.technique.named_parameters()) for learner in self.learners]
        self._leaves[phase.name] = leaves
        self._optimizers[phase.name] = EnsembleOptimizer(
            [learner.optimizer_configs[phase.name] for learner in self.learners],
            [learner.optimizers[phase.name] for learner in self.learners],
            leaves,
            member_parameters,
        )

    def step(self, batch: Batch, is_shared: bool, train_batches: Batches, clock: Clock) -> MemberMetrics:
        """Run every phase that is due and return the metrics of each member; see `Learner.step`.

        Each stream of `batch` is (members, batch, ...), or (batch, ...) if `is_shared` by all members.
        """
        for seed, generators in zip(self.seeds, self._generators, strict=True):
            generators.seed(seed, clock.step)
        metrics: MemberMetrics = {}
        for phase_index, phase in enumerate(self.learners[0].phases):
            if clock.step % phase.every or not self._is_due(phase_index, clock):
                continue
            if isinstance(phase, ClosedFormPhase):
                metrics.update(self._run_closed_form(phase_index, batch, is_shared, train_batches, clock))
            else:
                metrics.update(self._run_gradient_step(phase, batch, is_shared, clock))
        self._update_ema(clock)
        return metrics

    def update_members(self) -> None:
        """Write the optimizer state to the learners' own optimizers. Required before a learner is saved."""
        for optimizer in self._optimizers.values():
            optimizer.update_members()

    def compute_losses(
        self, phase: GradientPhase, batch: Batch, is_shared: bool, clock: Clock
    ) -> tuple[Tensor, MemberMetrics]:
        """Return the loss of each member (members,) and the metrics.

        Raises IncompatibleRunsError for dropout that cannot be reproduced, and the errors of vmap.
        """
        leaves = self._leaves[phase.name]
        parameters = {name: leaves.get(name, weight) for name, weight in self._parameters.items()}

        def compute_member_loss(
            parameters: dict[str, Tensor],
            buffers: dict[str, Tensor],
            hyperparameter_values: list[Tensor],
            batch: Batch,
            member_index: Tensor,
        ) -> tuple[Tensor, MemberMetrics, dict[str, Tensor]]:
            state = {f"technique.{name}": tensor for name, tensor in {**parameters, **buffers}.items()}
            with (
                self.hyperparameters.substitute(hyperparameter_values),
                EnsembleFunctionMode(self._generators, self.hyperparameters, member_index),
            ):
                losses, metrics = functional_call(self._function_module, state, (phase.loss, batch, clock))
            # A buffer changed in place shares memory with the stacked tensor. A replaced buffer is returned.
            new_buffers = {name: state[f"technique.{name}"] for name in buffers}
            return (
                losses,
                metrics,
                {name: buffer for name, buffer in new_buffers.items() if buffer is not buffers[name]},
            )

        compute_all_losses = torch.vmap(
            compute_member_loss, in_dims=(0, 0, 0, None if is_shared else 0, 0), randomness="error"
        )
        loss, member_metrics, replaced = compute_all_losses(
            parameters, self._buffers, self._hyperparameter_values, batch, self._member_indices
        )
        for name, buffer in replaced.items():
            self._buffers[name].copy_(buffer)
        return loss, member_metrics

    def _run_gradient_step(
        self, phase: GradientPhase, batch: Batch, is_shared: bool, clock: Clock
    ) -> MemberMetrics:
        learner, leaves = self.learners[0], self._leaves[phase.name]
        for leaf in leaves.values():
            leaf.grad = None
        with learner.matmul_context():
            with learner.autocast_context():
                losses, member_metrics = self.compute_losses(phase, batch, is_shared, clock)
            # Only loss i depends on the weights of member i, so the sum of the losses has the same gradients.
            losses.sum().backward(inputs=list(leaves.values()))
        metrics = {learner.loss_name_by_phase[phase.name]: losses.detach(), **member_metrics}
        if learner.settings.gradient_clip is not None:
            gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
            metrics[f"{phase.name}_gradient_norm"] = clip_grad_norm_per_member(
                gradients, learner.settings.gradient_clip
            )
        self._optimizers[phase.name].step(clock)
        return metrics

    def _run_closed_form(
        self, phase_index: int, batch: Batch, is_shared: bool, train_batches: Batches, clock: Clock
    ) -> MemberMetrics:
        """Update member by member, because the number of passes over the data may differ between members."""
        member_metrics: list[Metrics] = []
        for member_index, (learner, generators) in enumerate(zip(self.learners, self._generators, strict=True)):
            phase = learner.phases[phase_index]
            assert isinstance(phase, ClosedFormPhase)
            member_batch = batch if is_shared else {name: stream[member_index] for name, stream in batch.items()}
            with torch.no_grad(), generators.use_as_global(self.device):
                member_metrics.append(phase.update(train_batches if phase.is_full_batch else member_batch, clock))  # type: ignore[arg-type]
        return {name: torch.stack([metrics[name] for metrics in member_metrics]) for name in member_metrics[0]}

    def _is_due(self, phase_index: int, clock: Clock) -> bool:
        due = {learner.phases[phase_index].is_active(clock) for learner in self.learners}
        if len(due) > 1:
            raise IncompatibleRunsError(
                f"phase {self.learners[0].phases[phase_index].name} runs at different steps"
            )
        return due.pop()

    @torch.no_grad()
    def _update_ema(self, clock: Clock) -> None:
        if self._ema_tensors is None:
            return
        ema = self.learners[0].ema
        assert ema is not None
        parameters, buffers = self._ema_tensors
        if parameters:
            current_parameters = list(self._parameters.values())
            torch._foreach_lerp_(list(parameters.values()), current_parameters, 1 - ema.compute_decay(clock))
        if buffers:
            torch._foreach_copy_(list(buffers.values()), list(self._buffers.values()))


class _FunctionModule(nn.Module):
    """Module around a technique whose `forward` calls a given function, as `functional_call` requires."""

    def __init__(self, technique: nn.Module) -> None:
        super().__init__()
        self.technique = technique

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(*arguments)`. `function` must use the parameters of the technique."""
        return function(*arguments)


def clip_grad_norm_per_member(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Clip the gradient norm of each member to `max_norm`, in place. Return the norms before clipping (members,).

    Each gradient is (members, ...). A member's norm is taken over all `gradients` together.
    """
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    total = torch.linalg.vector_norm(norms, dim=0)
    factors = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
    return total


def stack_shared_state(modules: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the modules' parameters and buffers by name, each stacked to (modules, ...).

    The modules' own tensors become views of the stacked ones: a change in place of either changes both.
    """
    parameters = [dict(module.named_parameters()) for module in modules]
    buffers = [dict(module.named_buffers()) for module in modules]
    return _stack_shared(parameters), _stack_shared(buffers)


def _stack_shared(tensors_by_module: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    stacked = {}
    for name in tensors_by_module[0] if tensors_by_module else ():
        stacked[name] = torch.stack([module_tensors[name].detach() for module_tensors in tensors_by_module])
        for member_tensors, view in zip(tensors_by_module, stacked[name].unbind(), strict=True):
            member_tensors[name].data = view
    return stacked
