"""One step of a technique: its phases, their optimizers, and the average of its weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genexp.device import has_bf16_arithmetic, has_bf16_matmul, use_bf16_matmul
from genexp.distributed.process_group import ProcessGroup
from genexp.errors import CheckpointError
from genexp.sharding import gather_rows, shard_context
from genexp.technique import Batch, Batches, Clock, ClosedFormPhase, GradientPhase, Metrics, Phase, Technique
from genexp.training.cuda_graphs import CapturedStep, StepGraph, get_graph_factory
from genexp.training.optimizers import (
    OptimizerConfig,
    OptimizerPlan,
    build_optimizer,
    find_capture_obstacle,
    learning_rate,
)

log = logging.getLogger(__name__)
PRECISIONS = ("fp32", "bf32", "bf16")
AUTO_PRECISIONS = ("auto", "amx")  # by the processor


@dataclass(frozen=True)
class StepSettings:
    """How a step is computed."""

    precision: str = "fp32"  # of PRECISIONS or CHOSEN
    gradient_clip: float | None = None  # largest norm of a phase's gradient
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    capture: bool = False  # replay steps as CUDA graphs


def resolve_precision(requested_precision: str, device: torch.device) -> str:
    """Return which of PRECISIONS `wanted` is here.

    "auto" is bf16 on processors that compute in it, "amx" on those that multiply whole matrices in it, where
    "bf32" is itself. Elsewhere they are fp32.
    """
    is_supported = has_bf16_arithmetic if requested_precision == "auto" else has_bf16_matmul
    if requested_precision in (*AUTO_PRECISIONS, "bf32") and not (
        is_supported(device) and torch.get_default_dtype() == torch.float32
    ):
        return "fp32"
    return "bf16" if requested_precision in AUTO_PRECISIONS else requested_precision


class EMA:
    """An exponential moving average of a technique's parameters; buffers are copied as they are."""

    def __init__(self, technique: Technique, decay: float) -> None:
        self.technique = copy.deepcopy(technique).requires_grad_(False)
        self.decay = decay

    def compute_decay(self, clock: Clock) -> float:
        """Return the decay of a step; it warms up, so that a short run is not its first weights."""
        return min(self.decay, (1 + clock.step) / (10 + clock.step))

    @torch.no_grad()
    def update(self, technique: Technique, clock: Clock) -> None:
        """Move towards `technique`."""
        parameters: list[Tensor] = list(self.technique.parameters())
        if parameters:
            torch._foreach_lerp_(parameters, list(technique.parameters()), 1 - self.compute_decay(clock))
        buffers = list(self.technique.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(technique.buffers()))


class Learner:
    """A technique being taught. `step` is the only thing that changes it."""

    def __init__(
        self, technique: Technique, plan: OptimizerPlan, settings: StepSettings, device: torch.device
    ) -> None:
        self.technique = technique
        self.phases: tuple[Phase, ...] = technique.phases()
        self.settings = settings
        self.device = device
        self.precision = resolve_precision(settings.precision, device)
        plan.check_phases([phase.name for phase in self.phases if isinstance(phase, GradientPhase)])
        gradient_phases = [phase for phase in self.phases if isinstance(phase, GradientPhase)]
        self.loss_names = {
            phase.name: "loss" if len(gradient_phases) == 1 else f"{phase.name}_loss" for phase in gradient_phases
        }
        self.optimizer_configs: dict[str, OptimizerConfig] = {
            p.name: plan.bind_phase_config(p.name) for p in gradient_phases
        }
        self._graph_factory = self._select_graph_factory() if settings.capture else None
        self._captured_steps: dict[tuple[str, ...], CapturedStep] = {}  # names of the phases of a step → it
        self._learning_rates = {
            p.name: torch.zeros((), device=device) for p in gradient_phases
        }  # that graphs read
        self.optimizers = {
            p.name: build_optimizer(
                self.optimizer_configs[p.name], p.module, capturable=self._graph_factory is not None
            )
            for p in gradient_phases
        }
        self._parameters = {
            p.name: [weight for weight in p.module.parameters() if weight.requires_grad] for p in gradient_phases
        }
        self.ema = EMA(technique, settings.ema) if settings.ema else None
        self.set_process_group(ProcessGroup())

    def set_process_group(self, group: ProcessGroup) -> None:
        """Do from now on one member's part of each step; every member ends it with the same weights."""
        self._group = group
        if self._graph_factory is not None and not group.is_single_process:
            log.warning("trainer.capture=true has no effect: several processes share each step")
        self._loss_functions = {
            phase.name: group.wrap_loss(phase, sync_batch_norm=self.technique.should_sync_batch_norm)
            for phase in self.phases
            if isinstance(phase, GradientPhase)
        }

    @property
    def eval_technique(self) -> Technique:
        """Return the technique whose pictures and scores count: the averaged one where there is one."""
        return self.ema.technique if self.ema else self.technique

    @property
    def loss_phases(self) -> dict[str, str]:
        """Return which phase each loss metric belongs to."""
        return {loss: phase for phase, loss in self.loss_names.items()}

    def step(self, batch: Batch, train_batches: Batches, clock: Clock) -> Metrics:
        """Run every phase that is due at `clock` and return their metrics, in order."""
        due_phases = tuple(p for p in self.phases if clock.step % p.every == 0 and p.is_active(clock))
        for phase in due_phases:
            if isinstance(phase, GradientPhase):
                self._set_learning_rate(phase, clock)
        if self._graph_factory is None or not self._group.is_single_process:
            metrics = self._run_phases(due_phases, batch, train_batches, clock)
        else:
            metrics = self._get_captured_step(due_phases, self._graph_factory)(batch, clock)
        if self.ema:
            self.ema.update(self.technique, clock)
        return metrics

    def _run_phases(
        self, due_phases: tuple[Phase, ...], batch: Batch, train_batches: Batches, clock: Clock
    ) -> Metrics:
        metrics: Metrics = {}
        for phase in due_phases:
            if isinstance(phase, ClosedFormPhase):
                metrics.update(self._run_closed_form(phase, batch, train_batches, clock))
            else:
                metrics.update(self._run_gradient_step(phase, batch, clock))
        return metrics

    def _select_graph_factory(self) -> Callable[[], StepGraph] | None:
        """Return what makes graphs of steps, or None, and say so, where these phases allow none."""
        factory = get_graph_factory(self.device)
        obstacle = None if factory else f"device={self.device.type} has no graphs"
        if any(isinstance(phase, ClosedFormPhase) for phase in self.phases):
            obstacle = "a phase of this model refits, and is no chain of kernels"
        obstacle = obstacle or next(
            filter(None, map(find_capture_obstacle, self.optimizer_configs.values())), None
        )
        if obstacle:
            log.warning("trainer.capture=true has no effect: %s", obstacle)
        return None if obstacle else factory

    def _get_captured_step(
        self, due_phases: tuple[Phase, ...], graph_factory: Callable[[], StepGraph]
    ) -> CapturedStep:
        """Return the step that has these phases, which has a graph of its own."""
        names = tuple(phase.name for phase in due_phases)
        if names not in self._captured_steps:
            self._captured_steps[names] = CapturedStep(
                lambda batch, clock: self._run_phases(due_phases, batch, (), clock), graph_factory()
            )
        return self._captured_steps[names]

    def _set_learning_rate(self, phase: GradientPhase, clock: Clock) -> None:
        lr = learning_rate(self.optimizer_configs[phase.name], clock)
        for group in self.optimizers[phase.name].param_groups:
            group["lr"] = lr if self._graph_factory is None else self._learning_rates[phase.name].fill_(lr)

    @torch.no_grad()
    def _run_closed_form(
        self, phase: ClosedFormPhase, batch: Batch, train_batches: Batches, clock: Clock
    ) -> Metrics:
        """Hand `phase` all that there is, wherever it is, also where several processes may divide the work."""
        with shard_context(self._group.shard):
            samples = (
                train_batches if phase.is_full_batch else {name: gather_rows(rows) for name, rows in batch.items()}
            )
            return phase.update(samples, clock)  # type: ignore[arg-type]

    def _run_gradient_step(self, phase: GradientPhase, batch: Batch, clock: Clock) -> Metrics:
        optimizer, parameters = self.optimizers[phase.name], self._parameters[phase.name]
        metrics: Metrics = {}

        def closure() -> Tensor:
            for weight in parameters:  # torch's own zero_grad() takes longer than a small layer
                weight.grad = None
            with self.autocast():
                loss, loss_metrics = self._loss_functions[phase.name](batch, clock)
            # Only the learner's gradients: nothing is computed for, or left in, anyone else's weights.
            loss.backward(inputs=parameters)
            # An optimizer may call this several times a step: the first call is the step's loss.
            is_first_call = not metrics
            if is_first_call:
                metrics[self.loss_names[phase.name]] = loss.detach()
                metrics.update(loss_metrics)
            if self.settings.gradient_clip is not None:
                norm = nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
                if is_first_call:
                    metrics[f"{phase.name}_gradient_norm"] = norm
            # L-BFGS is led by the loss's value, which must lead every member the same way.
            return self._group.all_reduce_mean(loss) if isinstance(optimizer, torch.optim.LBFGS) else loss

        with self.matmul_context():
            optimizer.step(closure)  # type: ignore[arg-type]
        return metrics

    def matmul_context(self) -> AbstractContextManager[None]:
        """Return what losses and their gradients are computed under."""
        return use_bf16_matmul() if self.precision == "bf32" else nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return what losses are computed under."""
        if self.precision != "bf16":
            return nullcontext()
        # A graph must not read what a cache made before it.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=self._graph_factory is None)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as references to the live tensors."""
        return {
            "technique": dict(self.technique.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "average": dict(self.ema.technique.state_dict()) if self.ema else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that `state` was taken from. Raises CheckpointError where it is another's."""
        try:
            self.technique.load_state_dict(state["technique"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            if self.ema:
                self.ema.technique.load_state_dict(state["average"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"the checkpoint is not one of this model and optimizer ({reason}); "
                f"undo what was changed in the run's config.yaml"
            ) from None

    def reset_ema(self) -> None:
        """Start the average at the technique as it is now (after its initialization from data)."""
        if self.ema:
            self.ema = EMA(self.technique, self.settings.ema)
