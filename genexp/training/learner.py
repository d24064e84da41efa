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
from genexp.distributed.process_group import Team
from genexp.errors import CheckpointError
from genexp.sharding import shard_context, gather_rows
from genexp.technique import Batch, Batches, Clock, GradientPhase, Metrics, Phase, ClosedFormPhase, Technique
from genexp.training.cuda_graphs import CapturedStep, Graph, graphs_on
from genexp.training.optimizers import (
    OptimizerConfig,
    OptimizerPlan,
    build_optimizer,
    capture_obstacle,
    learning_rate,
)

log = logging.getLogger(__name__)
PRECISIONS = ("fp32", "bf32", "bf16")
CHOSEN = ("auto", "amx")  # by the processor


@dataclass(frozen=True)
class StepSettings:
    """How a step is computed."""

    precision: str = "fp32"  # of PRECISIONS or CHOSEN
    gradient_clip: float | None = None  # largest norm of a phase's gradient
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    capture: bool = False  # replay steps as CUDA graphs


def chosen_precision(wanted: str, device: torch.device) -> str:
    """Return which of PRECISIONS `wanted` is here.

    "auto" is bf16 on processors that compute in it, "amx" on those that multiply whole matrices in it, where
    "bf32" is itself. Elsewhere they are fp32.
    """
    able = has_bf16_arithmetic if wanted == "auto" else has_bf16_matmul
    if wanted in (*CHOSEN, "bf32") and not (able(device) and torch.get_default_dtype() == torch.float32):
        return "fp32"
    return "bf16" if wanted in CHOSEN else wanted


class Average:
    """An exponential moving average of a technique's parameters; buffers are copied as they are."""

    def __init__(self, technique: Technique, decay: float) -> None:
        self.technique = copy.deepcopy(technique).requires_grad_(False)
        self.decay = decay

    def decay_at(self, clock: Clock) -> float:
        """Return the decay of a step; it warms up, so that a short run is not its first weights."""
        return min(self.decay, (1 + clock.step) / (10 + clock.step))

    @torch.no_grad()
    def update(self, technique: Technique, clock: Clock) -> None:
        """Move towards `technique`."""
        parameters: list[Tensor] = list(self.technique.parameters())
        if parameters:
            torch._foreach_lerp_(parameters, list(technique.parameters()), 1 - self.decay_at(clock))
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
        self.precision = chosen_precision(settings.precision, device)
        plan.check_phases([phase.name for phase in self.phases if isinstance(phase, GradientPhase)])
        descents = [phase for phase in self.phases if isinstance(phase, GradientPhase)]
        self.loss_names = {
            phase.name: "loss" if len(descents) == 1 else f"{phase.name}_loss" for phase in descents
        }
        self.configs: dict[str, OptimizerConfig] = {p.name: plan.for_phase(p.name) for p in descents}
        self._new_graph = self._graphs() if settings.capture else None
        self._captured: dict[tuple[str, ...], CapturedStep] = {}  # names of the phases of a step → it
        self._rates = {p.name: torch.zeros((), device=device) for p in descents}  # that graphs read
        self.optimizers = {
            p.name: build_optimizer(self.configs[p.name], p.module, captured=self._new_graph is not None)
            for p in descents
        }
        self._parameters = {
            p.name: [weight for weight in p.module.parameters() if weight.requires_grad] for p in descents
        }
        self.average = Average(technique, settings.ema) if settings.ema else None
        self.share(Team())

    def share(self, team: Team) -> None:
        """Do from now on one member's part of each step; every member ends it with the same weights."""
        self._team = team
        if self._new_graph is not None and not team.alone:
            log.warning("trainer.capture=true has no effect: several processes share each step")
        self._losses = {
            phase.name: team.share(phase, synchronised=self.technique.should_sync_batch_norm)
            for phase in self.phases
            if isinstance(phase, GradientPhase)
        }

    @property
    def shown(self) -> Technique:
        """Return the technique whose pictures and scores count: the averaged one where there is one."""
        return self.average.technique if self.average else self.technique

    @property
    def loss_phases(self) -> dict[str, str]:
        """Return which phase each loss metric belongs to."""
        return {loss: phase for phase, loss in self.loss_names.items()}

    def step(self, batch: Batch, split: Batches, clock: Clock) -> Metrics:
        """Run every phase that is due at `clock` and return their metrics, in order."""
        due = tuple(p for p in self.phases if clock.step % p.every == 0 and p.is_active(clock))
        for phase in due:
            if isinstance(phase, GradientPhase):
                self._set_rate(phase, clock)
        if self._new_graph is None or not self._team.alone:
            metrics = self._run(due, batch, split, clock)
        else:
            metrics = self._capture(due, self._new_graph)(batch, clock)
        if self.average:
            self.average.update(self.technique, clock)
        return metrics

    def _run(self, due: tuple[Phase, ...], batch: Batch, split: Batches, clock: Clock) -> Metrics:
        metrics: Metrics = {}
        for phase in due:
            if isinstance(phase, ClosedFormPhase):
                metrics.update(self._refit(phase, batch, split, clock))
            else:
                metrics.update(self._descend(phase, batch, clock))
        return metrics

    def _graphs(self) -> Callable[[], Graph] | None:
        """Return what makes graphs of steps, or None, and say so, where these phases allow none."""
        made = graphs_on(self.device)
        obstacle = None if made else f"device={self.device.type} has no graphs"
        if any(isinstance(phase, ClosedFormPhase) for phase in self.phases):
            obstacle = "a phase of this model refits, and is no chain of kernels"
        obstacle = obstacle or next(filter(None, map(capture_obstacle, self.configs.values())), None)
        if obstacle:
            log.warning("trainer.capture=true has no effect: %s", obstacle)
        return None if obstacle else made

    def _capture(self, due: tuple[Phase, ...], new_graph: Callable[[], Graph]) -> CapturedStep:
        """Return the step that has these phases, which has a graph of its own."""
        names = tuple(phase.name for phase in due)
        if names not in self._captured:
            self._captured[names] = CapturedStep(
                lambda batch, clock: self._run(due, batch, (), clock), new_graph()
            )
        return self._captured[names]

    def _set_rate(self, phase: GradientPhase, clock: Clock) -> None:
        rate = learning_rate(self.configs[phase.name], clock)
        for group in self.optimizers[phase.name].param_groups:
            group["lr"] = rate if self._new_graph is None else self._rates[phase.name].fill_(rate)

    @torch.no_grad()
    def _refit(self, phase: ClosedFormPhase, batch: Batch, split: Batches, clock: Clock) -> Metrics:
        """Hand `phase` all that there is, wherever it is, also where several processes may divide the work."""
        with shard_context(self._team.part):
            seen = split if phase.is_full_batch else {name: gather_rows(rows) for name, rows in batch.items()}
            return phase.update(seen, clock)  # type: ignore[arg-type]

    def _descend(self, phase: GradientPhase, batch: Batch, clock: Clock) -> Metrics:
        optimizer, parameters = self.optimizers[phase.name], self._parameters[phase.name]
        metrics: Metrics = {}

        def closure() -> Tensor:
            for weight in parameters:  # torch's own zero_grad() takes longer than a small layer
                weight.grad = None
            with self.autocast():
                loss, extra = self._losses[phase.name](batch, clock)
            # Only the learner's gradients: nothing is computed for, or left in, anyone else's weights.
            loss.backward(inputs=parameters)
            # An optimizer may call this several times a step: the first call is the step's loss.
            first = not metrics
            if first:
                metrics[self.loss_names[phase.name]] = loss.detach()
                metrics.update(extra)
            if self.settings.gradient_clip is not None:
                norm = nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
                if first:
                    metrics[f"{phase.name}_gradient_norm"] = norm
            # L-BFGS is led by the loss's value, which must lead every member the same way.
            return self._team.mean(loss) if isinstance(optimizer, torch.optim.LBFGS) else loss

        with self.arithmetic():
            optimizer.step(closure)  # type: ignore[arg-type]
        return metrics

    def arithmetic(self) -> AbstractContextManager[None]:
        """Return what losses and their gradients are computed under."""
        return use_bf16_matmul() if self.precision == "bf32" else nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return what losses are computed under."""
        if self.precision != "bf16":
            return nullcontext()
        # A graph must not read what a cache made before it.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=self._new_graph is None)

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as references to the live tensors."""
        return {
            "technique": dict(self.technique.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "average": dict(self.average.technique.state_dict()) if self.average else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become the learner that `state` was taken from. Raises CheckpointError where it is another's."""
        try:
            self.technique.load_state_dict(state["technique"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            if self.average:
                self.average.technique.load_state_dict(state["average"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"the checkpoint is not one of this model and optimizer ({reason}); "
                f"undo what was changed in the run's config.yaml"
            ) from None

    def reset_average(self) -> None:
        """Start the average at the technique as it is now (after its initialisation from data)."""
        if self.average:
            self.average = Average(self.technique, self.settings.ema)
