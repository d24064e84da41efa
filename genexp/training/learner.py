"""A single training step: the phases of a technique, their optimizers, and the EMA of its weights."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genexp.device import has_bf16_arithmetic, has_bf16_matmul, use_bf16_matmul
from genexp.distributed.global_batch import AccumulationMode
from genexp.distributed.process_group import ProcessGroup
from genexp.errors import CheckpointError, ConfigError, DivergenceError, PluginError, locate
from genexp.seeding import get_generator_states, set_generator_states
from genexp.sharding import Shard, gather_rows, shard_context
from genexp.technique import Batch, Batches, Clock, ClosedFormPhase, GradientPhase, Metrics, Phase, Technique
from genexp.training.cuda_graphs import (
    CapturedStep,
    CompiledLoss,
    StepGraph,
    find_compile_obstacle,
    get_graph_factory,
)
from genexp.training.optimizers import (
    OptimizerConfig,
    OptimizerPlan,
    build_optimizer,
    find_capture_obstacle,
    learning_rate,
)

log = logging.getLogger(__name__)
PRECISIONS = ("fp32", "bf32", "bf16")
AUTO_PRECISIONS = ("auto", "amx")  # resolved by the instructions of the CPU, see `resolve_precision`

ANOMALY_PATTERN = re.compile(r"Function '(\w+)' returned nan values")
CODE_LINE_PATTERN = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True)
class StepSettings:
    """Settings of the computation of a step."""

    precision: str = "fp32"  # one of PRECISIONS or AUTO_PRECISIONS
    gradient_clip: float | None = None  # maximum L2 norm of a phase's gradient; None disables clipping
    ema: float = 0.0  # decay of the averaged weights, in [0, 1); 0 disables averaging
    capture: bool = False  # replay steps as CUDA graphs
    accumulate: int = 1  # parts into which a batch is divided, whose gradients are added
    compile: bool = False  # compile the losses with torch.compile
    debug: bool = False  # find operations whose gradient is NaN, and run each phase in every step; slow


def resolve_precision(requested_precision: str, device: torch.device) -> str:
    """Return which of PRECISIONS to use for `requested_precision` on `device`.

    "auto" becomes bf16 on a CPU with bfloat16 instructions. "amx" becomes bf16 on a CPU with AMX bfloat16
    instructions. "bf32" needs these too. Otherwise all three become fp32, also under another default dtype than
    float32. "fp32" and "bf16" are returned unchanged.
    """
    is_supported = has_bf16_arithmetic if requested_precision == "auto" else has_bf16_matmul
    if requested_precision in (*AUTO_PRECISIONS, "bf32") and not (
        is_supported(device) and torch.get_default_dtype() == torch.float32
    ):
        return "fp32"
    return "bf16" if requested_precision in AUTO_PRECISIONS else requested_precision


class EMA:
    """Exponential moving average of a technique's parameters. Buffers are copied, not averaged."""

    def __init__(self, technique: Technique, decay: float) -> None:
        self.technique = copy.deepcopy(technique).requires_grad_(False)
        self.decay = decay

    def compute_decay(self, clock: Clock) -> float:
        """Return min(decay, (1 + step) / (10 + step)).

        The warm-up keeps the initial weights from dominating the average of a short run.
        """
        return min(self.decay, (1 + clock.step) / (10 + clock.step))

    @torch.no_grad()
    def update(self, technique: Technique, clock: Clock) -> None:
        """Move the averaged parameters toward those of `technique`, and copy its buffers."""
        parameters: list[Tensor] = list(self.technique.parameters())
        if parameters:
            torch._foreach_lerp_(parameters, list(technique.parameters()), 1 - self.compute_decay(clock))
        buffers = list(self.technique.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(technique.buffers()))


class Learner:
    """A technique with its optimizers, precision and EMA. During training only `step` changes these."""

    def __init__(
        self, technique: Technique, plan: OptimizerPlan, settings: StepSettings, device: torch.device
    ) -> None:
        self.technique = technique
        self.phases: tuple[Phase, ...] = tuple(technique.phases())
        _check_phases(self.phases)
        self.settings = settings
        self.device = device
        self.precision = resolve_precision(settings.precision, device)
        plan.check_phases([phase.name for phase in self.phases if isinstance(phase, GradientPhase)])
        gradient_phases = [phase for phase in self.phases if isinstance(phase, GradientPhase)]
        self.loss_name_by_phase = {
            phase.name: "loss" if len(gradient_phases) == 1 else f"{phase.name}_loss" for phase in gradient_phases
        }
        self.optimizer_configs: dict[str, OptimizerConfig] = {
            p.name: plan.get_config(p.name) for p in gradient_phases
        }
        self._checked_phases: set[str] = set()  # names of the phases whose loss has returned a valid result
        self._graph_factory = self._select_graph_factory() if settings.capture else None
        self._captured_steps: dict[tuple[str, ...], CapturedStep] = {}  # names of the active phases → their step
        self._learning_rate_tensors = {
            p.name: torch.zeros((), device=device) for p in gradient_phases
        }  # () tensors that captured steps read
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
        if settings.accumulate > 1:
            self._check_accumulation()
        self.plateau_phases = [
            name for name, config in self.optimizer_configs.items() if config.schedule == "plateau"
        ]
        self.plateau_reductions: dict[str, int] = {}  # phase → number of reductions of its learning rate
        self.has_loaded_weights = False  # weights of another run, which `Technique.initialize` must not replace
        self.set_process_group(ProcessGroup())

    def set_process_group(self, group: ProcessGroup) -> None:
        """Share each later step with the other ranks of `group`. All ranks end a step with the same weights."""
        self._group = group
        if self._graph_factory is not None and not group.is_single_process:
            log.warning("trainer.capture=true: no effect, because several processes share each step")
        self._loss_functions = {
            phase.name: group.wrap_loss(phase, should_sync_batch_norm=self.technique.should_sync_batch_norm)
            for phase in self.phases
            if isinstance(phase, GradientPhase)
        }
        if self.settings.compile:
            self._compile_losses(group)

    def _compile_losses(self, group: ProcessGroup) -> None:
        """Replace the losses by compiled ones, or log a warning if they cannot be compiled."""
        obstacle = find_compile_obstacle(self.device)
        if not group.is_single_process:
            obstacle = "several processes share each step"
        if self.settings.accumulate > 1:
            obstacle = "trainer.accumulate divides each batch"
        if not self._loss_functions:
            obstacle = "the model has no gradient phase"
        if obstacle:
            log.warning("trainer.compile=true: no effect, because %s", obstacle)
            return
        self._loss_functions = {name: CompiledLoss(loss) for name, loss in self._loss_functions.items()}

    def _check_accumulation(self) -> None:
        """Log a warning about batch normalization. Raises ConfigError for a technique without a gradient phase."""
        count = self.settings.accumulate
        if not self.optimizers:
            raise ConfigError(
                f"trainer.accumulate={count}: model={self.technique.name} has no gradient phase. Remove it."
            )
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.technique.modules()):
            log.warning(
                "trainer.accumulate=%d: batch normalization takes its statistics from each part of a batch", count
            )

    @property
    def eval_technique(self) -> Technique:
        """The technique used for evaluation and previews: the EMA if it is enabled, else the trained one."""
        return self.ema.technique if self.ema else self.technique

    @property
    def phase_by_loss(self) -> dict[str, str]:
        """The phase of each loss metric: metric name → phase name."""
        return {loss: phase for phase, loss in self.loss_name_by_phase.items()}

    def step(self, batch: Batch, train_batches: Batches, clock: Clock) -> Metrics:
        """Run every phase that is due at `clock`, in order, and return their metrics: name → scalar.

        `batch` is stream name → (batch, ...). `train_batches` is the training split, for phases with
        `is_full_batch`.
        """
        due_phases = tuple(
            p for p in self.phases if (self.settings.debug or clock.step % p.every == 0) and p.is_active(clock)
        )
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
        """Return a function that creates graphs, or log a warning and return None if no step can be captured."""
        factory = get_graph_factory(self.device)
        obstacle = None if factory else f"device={self.device.type} does not support graphs"
        if self.settings.accumulate > 1 or self.settings.compile or self.settings.debug:
            obstacle = "trainer.accumulate, trainer.compile or trainer.debug is set"
        if any(isinstance(phase, ClosedFormPhase) for phase in self.phases):
            obstacle = "the model has a closed-form phase"
        obstacle = obstacle or next(
            filter(None, map(find_capture_obstacle, self.optimizer_configs.values())), None
        )
        if obstacle:
            log.warning("trainer.capture=true: no effect, because %s", obstacle)
        return None if obstacle else factory

    def _get_captured_step(
        self, due_phases: tuple[Phase, ...], graph_factory: Callable[[], StepGraph]
    ) -> CapturedStep:
        """Return the captured step of these phases. Each combination of phases has a graph of its own."""
        names = tuple(phase.name for phase in due_phases)
        if names not in self._captured_steps:
            self._captured_steps[names] = CapturedStep(
                lambda batch, clock: self._run_phases(due_phases, batch, (), clock), graph_factory()
            )
        return self._captured_steps[names]

    def set_plateau_reductions(self, counts: Sequence[int]) -> None:
        """Set the number of reductions of the learning rate of each phase in `plateau_phases`."""
        self.plateau_reductions = dict(zip(self.plateau_phases, counts, strict=True))

    def _set_learning_rate(self, phase: GradientPhase, clock: Clock) -> None:
        lr = learning_rate(self.optimizer_configs[phase.name], clock, self.plateau_reductions.get(phase.name, 0))
        for param_group in self.optimizers[phase.name].param_groups:
            param_group["lr"] = (
                lr if self._graph_factory is None else self._learning_rate_tensors[phase.name].fill_(lr)
            )

    @torch.no_grad()
    def _run_closed_form(
        self, phase: ClosedFormPhase, batch: Batch, train_batches: Batches, clock: Clock
    ) -> Metrics:
        """Run `phase` on the global batch or the whole training split, also if several processes share the run.

        Under `shard_context` a phase may divide its work among the processes.
        """
        with shard_context(self._group.shard):
            phase_input = (
                train_batches if phase.is_full_batch else {name: gather_rows(rows) for name, rows in batch.items()}
            )
            return phase.update(phase_input, clock)  # type: ignore[arg-type]

    def _run_gradient_step(self, phase: GradientPhase, batch: Batch, clock: Clock) -> Metrics:
        optimizer, parameters = self.optimizers[phase.name], self._parameters[phase.name]
        metrics: Metrics = {}

        def closure() -> Tensor:
            for weight in parameters:  # Optimizer.zero_grad() takes longer than a small layer
                weight.grad = None
            compute = self._accumulate_gradients if self.settings.accumulate > 1 else self._compute_gradients
            loss, loss_metrics = compute(phase, batch, clock)
            # An optimizer may call the closure several times a step. The metrics are those of the first call.
            is_first_call = not metrics
            if is_first_call:
                metrics[self.loss_name_by_phase[phase.name]] = loss.detach()
                metrics.update(loss_metrics)
            if self.settings.gradient_clip is not None:
                norm = nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
                if is_first_call:
                    metrics[f"{phase.name}_gradient_norm"] = norm
            # L-BFGS branches on the value of the loss, so the value must be equal on all ranks.
            return self._group.all_reduce_mean(loss) if isinstance(optimizer, torch.optim.LBFGS) else loss

        with self.matmul_context(), self._detect_anomalies(phase, clock):
            optimizer.step(closure)  # type: ignore[arg-type]
        return metrics

    def _compute_gradients(
        self, phase: GradientPhase, batch: Batch, clock: Clock, weight: float | None = None
    ) -> tuple[Tensor, Metrics]:
        """Add the gradients of the loss of `batch`, times `weight`, and return the loss and its metrics."""
        with self.autocast_context():
            result = self._loss_functions[phase.name](batch, clock)
        if phase.name not in self._checked_phases:
            _check_loss(phase, result)
            self._checked_phases.add(phase.name)
        loss, metrics = result
        # `inputs` restricts gradients to the module of this phase. Other parameters get none.
        (loss if weight is None else loss * weight).backward(inputs=self._parameters[phase.name])
        return loss, metrics

    def _accumulate_gradients(self, phase: GradientPhase, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Add the gradients of the parts of `batch`, with the random numbers of the whole. Return the means."""
        count, states = self.settings.accumulate, get_generator_states(self.device)
        losses: list[Tensor] = []
        values: dict[str, list[Tensor]] = {}
        for index in range(count):
            set_generator_states(self.device, states)
            part = {name: rows[index::count] for name, rows in batch.items()}
            part_size = len(next(iter(part.values()))) * self._group.shard.count
            with AccumulationMode(Shard(index, count), part_size):
                loss, metrics = self._compute_gradients(phase, part, clock, 1 / count)
            losses.append(loss.detach())
            for name, value in metrics.items():
                values.setdefault(name, []).append(value)
        means = {name: torch.stack(parts).to(losses[0].dtype).mean() for name, parts in values.items()}
        return torch.stack(losses).mean(), means

    @contextmanager
    def _detect_anomalies(self, phase: GradientPhase, clock: Clock) -> Iterator[None]:
        """Raise DivergenceError with the operation whose gradient is NaN in the block, if `debug` is set."""
        if not self.settings.debug:
            yield
            return
        with warnings.catch_warnings(record=True) as caught, torch.autograd.set_detect_anomaly(True):
            warnings.simplefilter("always")
            try:
                yield
            except RuntimeError as error:
                if (match := ANOMALY_PATTERN.search(str(error))) is None:
                    raise
                # torch warns with the stack of the operation. The innermost line outside of torch is its place.
                lines = CODE_LINE_PATTERN.findall("\n".join(str(entry.message) for entry in caught))
                places = [f"{path}:{line}" for path, line in lines if "/torch/" not in path]
                place = f" at {places[-1]}" if places else ""
                raise DivergenceError(
                    f"the gradient of {match[1]}{place} became NaN in phase {phase.name} at step {clock.step}. "
                    f"Use a smaller optimizer.lr, or change this operation."
                ) from None
        for entry in caught:
            warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)

    def matmul_context(self) -> AbstractContextManager[None]:
        """Return the context of the optimizer step, losses and gradients included: bf16 products under bf32."""
        return use_bf16_matmul() if self.precision == "bf32" else nullcontext()

    def autocast_context(self) -> AbstractContextManager[Any]:
        """Return the autocast context of the losses. It does nothing unless the precision is bf16."""
        if self.precision != "bf16":
            return nullcontext()
        # A captured graph must not read casts that were cached before the capture.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=self._graph_factory is None)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next step depends on, as references to the live tensors."""
        return {
            "technique": dict(self.technique.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            # Weights of the EMA. The key is part of the checkpoint format.
            "average": dict(self.ema.technique.state_dict()) if self.ema else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state`. Raises CheckpointError where it belongs to another model or optimizer.

        The state of the optimizers is None in the last checkpoint of a run with trainer.final_checkpoint=weights.
        """
        try:
            self.technique.load_state_dict(state["technique"])
            if state["optimizers"] is not None:
                for name, optimizer in self.optimizers.items():
                    optimizer.load_state_dict(state["optimizers"][name])
            if self.ema:
                self.ema.technique.load_state_dict(state["average"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"the checkpoint does not match the model and optimizer ({reason}). "
                f"Restore the config.yaml of the run."
            ) from None

    def reset_ema(self) -> None:
        """Restart the average from the current weights, as after the initialization from data."""
        if self.ema:
            self.ema = EMA(self.technique, self.settings.ema)


def _check_phases(phases: tuple[Phase, ...]) -> None:
    """Raise PluginError if `phases` is not a tuple of valid phases with distinct names."""
    names = [getattr(phase, "name", "") for phase in phases]
    for phase, name in zip(phases, names, strict=True):
        if not isinstance(phase, GradientPhase | ClosedFormPhase):
            raise PluginError(f"phases() returned {phase!r}. Return a tuple of GradientPhase or ClosedFormPhase.")
        if isinstance(phase, GradientPhase) and not any(p.requires_grad for p in phase.module.parameters()):
            reason = (
                f"phase {name} has no parameters. Pass a module that has some, as an attribute of the technique."
            )
            raise PluginError(f"{locate(phase.loss)}: {reason}")
    if len(set(names)) < len(names):
        raise PluginError(f"two phases have one name: {', '.join(names)}. Rename one.")


def _check_loss(phase: GradientPhase, result: Any) -> None:
    """Raise PluginError unless `result` is a differentiable scalar and a mapping of names to detached scalars."""
    problem = None
    match result:
        case (Tensor() as loss, Mapping() as metrics):
            if loss.dim():
                problem = f"the loss has the shape {tuple(loss.shape)}. Return a scalar, for example its mean"
            elif not loss.requires_grad:
                problem = "the loss depends on no parameter. Compute it from outputs of the phase's module"
            for name, value in metrics.items():
                if not isinstance(value, Tensor) or value.dim() or value.requires_grad:
                    problem = f"the metric {name} is not a detached scalar tensor. Use genexp.detach_metrics"
        case _:
            problem = "the loss must return a scalar tensor and a mapping of metrics, which may be empty"
    if problem is not None:
        raise PluginError(f"{locate(phase.loss)}: phase {phase.name}: {problem}.")
