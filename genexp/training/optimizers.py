"""Optimizers and learning-rate schedules by name, and their configuration.

The optimizers are those of torch, without the import of its compiler. The first step of Adam is therefore complete
1.2 s earlier (scripts/README.md, "Libraries").
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genexp.config import FieldError, bind, check_option, require, suggest_choice
from genexp.errors import ConfigError
from genexp.technique import Clock

DYNAMO_WRAPPED_METHODS = (
    "add_param_group",
    "zero_grad",
    "state_dict",
    "load_state_dict",
)  # methods that torch decorates with `torch._disable_dynamo`
SCHEDULES: dict[str, Callable[[float], float]] = {  # progress of the decay, in [0, 1] → factor of `lr`
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "step": lambda progress: 0.1 ** min(2, math.floor(3 * progress)),  # a tenth after each third
    "exponential": lambda progress: 0.01**progress,  # a hundredth at the end
    "one_cycle": lambda progress: (  # Smith & Topin 2019, with the shape of torch's OneCycleLR
        0.04 + 0.96 * _rise(progress / 0.3) if progress < 0.3 else _rise((1 - progress) / 0.7)
    ),
    "plateau": lambda progress: 1.0,  # see OptimizerConfig
}


# Values of keys that runs of earlier versions do not have.
ADDED_KEYS: Mapping[str, Any] = {"plateau_patience": 5, "plateau_factor": 0.1}


def _rise(progress: float) -> float:
    """Return half a cosine wave from 0 at 0 to 1 at 1."""
    return 0.5 * (1.0 - math.cos(math.pi * progress))


def remove_dynamo_wrappers(optimizer_class: type[Optimizer]) -> type[Optimizer]:
    """Return a subclass of `optimizer_class` whose methods lack torch's wrappers for its compiler.

    The wrappers import `torch._dynamo` at the first step, which takes about as long as `import torch`.
    """
    methods = {name: inspect.unwrap(getattr(optimizer_class, name)) for name in DYNAMO_WRAPPED_METHODS}
    return type(
        optimizer_class.__name__,
        (optimizer_class,),
        {**methods, "step": torch.no_grad()(inspect.unwrap(optimizer_class.step))},
    )


@dataclass
class OptimizerConfig:
    """Settings that all optimizers share: the learning rate and its schedule."""

    name: str
    lr: float
    schedule: str  # one of SCHEDULES
    warmup_steps: int  # number of steps in which the learning rate rises linearly to `lr`
    # schedule=plateau: the rate is multiplied by `plateau_factor` after each `plateau_patience` epochs in which
    # the objective did not improve.
    plateau_patience: int
    plateau_factor: float
    decay_start: float  # fraction of the run, in [0, 1), after which the decay begins

    def __post_init__(self) -> None:
        require(self.lr > 0 and math.isfinite(self.lr), "lr", self.lr, "must be positive and finite")
        choices = ", ".join(SCHEDULES)
        require(self.schedule in SCHEDULES, "schedule", self.schedule, f"must be one of {choices}")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "must be 0 or more")
        require(self.plateau_patience > 0, "plateau_patience", self.plateau_patience, "must be at least 1")
        is_factor = 0 < self.plateau_factor < 1
        require(is_factor, "plateau_factor", self.plateau_factor, "must be between 0 and 1")
        require(
            0 <= self.decay_start < 1, "decay_start", self.decay_start, "must be a fraction of the run in [0, 1)"
        )

    def to_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments for the torch optimizer."""
        shared_keys = {field.name for field in fields(OptimizerConfig)} - {"lr"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in shared_keys}


@dataclass
class WeightDecayConfig(OptimizerConfig):
    """Settings of an optimizer with weight decay."""

    weight_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must be 0 or more")


@dataclass
class AdamConfig(WeightDecayConfig):
    """Settings of Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019)."""

    betas: tuple[float, float]
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.betas) == 2, "betas", list(self.betas), "must be two values")
        self.betas = (float(self.betas[0]), float(self.betas[1]))
        require(all(0 <= beta < 1 for beta in self.betas), "betas", list(self.betas), "must be values in [0, 1)")
        require(self.eps > 0, "eps", self.eps, "must be positive")


@dataclass
class SGDConfig(WeightDecayConfig):
    """Settings of stochastic gradient descent."""

    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.momentum >= 0, "momentum", self.momentum, "must be 0 or more")
        is_valid = self.momentum > 0 or not self.nesterov
        require(is_valid, "nesterov", self.nesterov, "must be false unless momentum is positive")


@dataclass
class RMSpropConfig(WeightDecayConfig):
    """Settings of RMSprop (Tieleman & Hinton 2012)."""

    alpha: float
    eps: float
    momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha < 1, "alpha", self.alpha, "must be in [0, 1)")
        require(self.eps > 0, "eps", self.eps, "must be positive")
        require(self.momentum >= 0, "momentum", self.momentum, "must be 0 or more")


@dataclass
class AdadeltaConfig(WeightDecayConfig):
    """Settings of Adadelta (Zeiler 2012)."""

    rho: float
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.rho < 1, "rho", self.rho, "must be in [0, 1)")
        require(self.eps > 0, "eps", self.eps, "must be positive")


@dataclass
class LBFGSConfig(OptimizerConfig):
    """Settings of L-BFGS, which runs up to `max_iter` iterations a step."""

    max_iter: int
    history_size: int
    line_search_fn: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_iter > 0, "max_iter", self.max_iter, "must be at least 1")
        require(self.history_size > 0, "history_size", self.history_size, "must be at least 1")
        choices = (None, "strong_wolfe")
        require(
            self.line_search_fn in choices, "line_search_fn", self.line_search_fn, "must be null or strong_wolfe"
        )


@dataclass
class TorchOptimizerConfig(OptimizerConfig):
    """Settings of any optimizer of torch.optim. `name` is the name of its class."""

    options: dict[str, Any]  # keyword parameters of the class

    def __post_init__(self) -> None:
        super().__post_init__()
        optimizer_class = find_torch_class(self.name)
        for option, value in self.options.items():
            require(option != "lr", "options", self.options, "must not contain lr: use optimizer.lr")
            check_option(optimizer_class, "options", str(option), value)

    def to_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments for the torch optimizer. Lists become tuples."""
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in self.options.items()}
        return {"lr": self.lr, **options}


@dataclass(frozen=True)
class _OptimizerSpec:
    config_class: type[OptimizerConfig]
    optimizer_class: Callable[..., torch.optim.Optimizer]
    has_fused: bool = False  # whether torch has a fused implementation: one kernel for all parameters
    is_capturable: bool = False  # whether a step can be part of a CUDA graph
    is_elementwise: bool = True  # whether each element's update depends on its own gradients alone


OPTIMIZERS = {
    "adam": _OptimizerSpec(
        AdamConfig, remove_dynamo_wrappers(torch.optim.Adam), has_fused=True, is_capturable=True
    ),
    "adamw": _OptimizerSpec(
        AdamConfig, remove_dynamo_wrappers(torch.optim.AdamW), has_fused=True, is_capturable=True
    ),
    "sgd": _OptimizerSpec(SGDConfig, remove_dynamo_wrappers(torch.optim.SGD), has_fused=True),
    "rmsprop": _OptimizerSpec(RMSpropConfig, remove_dynamo_wrappers(torch.optim.RMSprop)),
    "adadelta": _OptimizerSpec(AdadeltaConfig, remove_dynamo_wrappers(torch.optim.Adadelta)),
    "lbfgs": _OptimizerSpec(LBFGSConfig, remove_dynamo_wrappers(torch.optim.LBFGS), is_elementwise=False),
}


def find_torch_class(name: str) -> type[Optimizer]:
    """Return the class `name` of torch.optim. Raises FieldError if there is none."""
    classes = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    is_sparse = name == "SparseAdam"
    require(not is_sparse, "name", name, "requires sparse gradients, which genexp does not support. Use Adam")
    if name not in classes:
        raise FieldError("name", name, f"unknown class of torch.optim. {suggest_choice(name, classes)}")
    return classes[name]


@cache
def _find_spec(name: str) -> _OptimizerSpec:
    """Return the optimizer `name`: one of OPTIMIZERS, or a class of torch.optim."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    # It is not known whether an arbitrary class updates each element separately.
    return _OptimizerSpec(
        TorchOptimizerConfig, remove_dynamo_wrappers(find_torch_class(name)), is_elementwise=False
    )


@dataclass(frozen=True)
class OptimizerPlan:
    """Optimizer settings of all phases: shared ones, and those of phases that override some."""

    shared_config: OptimizerConfig
    phase_configs: Mapping[str, OptimizerConfig]

    def get_config(self, phase: str) -> OptimizerConfig:
        """Return the optimizer settings of a phase."""
        return self.phase_configs.get(phase, self.shared_config)

    def check_phases(self, names: list[str]) -> None:
        """Raise ConfigError where an override is for a phase that is not in `names`."""
        for phase in self.phase_configs:
            if phase not in names:
                raise ConfigError(f"optimizer.{phase}: unknown phase. {suggest_choice(phase, names)}")


def plan_optimizers(node: Mapping[str, Any]) -> OptimizerPlan:
    """Bind the `optimizer` config group: shared settings, and overrides by phase. Raises ConfigError."""
    node = {**ADDED_KEYS, **node}
    name = str(node.get("name"))
    has_options = "options" in node  # as in conf/optimizer/torch.yaml
    if has_options and name in OPTIMIZERS:  # the names of torch's classes have capital letters
        raise ConfigError(f"optimizer.options: not a key of optimizer={name}. Use optimizer=torch, or remove it.")
    if name not in OPTIMIZERS and not has_options:
        raise ConfigError(f"optimizer.name={name}: unknown optimizer. {suggest_choice(str(name), OPTIMIZERS)}")
    config_class = TorchOptimizerConfig if has_options else OPTIMIZERS[name].config_class
    overrides_by_phase = {
        str(key): value for key, value in node.items() if isinstance(value, Mapping) and key != "options"
    }
    shared = {str(key): value for key, value in node.items() if key not in overrides_by_phase}
    for phase, overrides in overrides_by_phase.items():
        if "name" in overrides:
            raise ConfigError(
                f"optimizer.{phase}.name={overrides['name']}: all phases have the same optimizer. "
                f"Remove it, and use optimizer=NAME."
            )
    return OptimizerPlan(
        bind(config_class, shared, "optimizer"),
        {
            phase: bind(config_class, {**shared, **overrides}, f"optimizer.{phase}")
            for phase, overrides in overrides_by_phase.items()
        },
    )


def find_capture_obstacle(config: OptimizerConfig) -> str | None:
    """Return why a CUDA graph cannot contain this optimizer's step, or None where it can."""
    if _find_spec(config.name).is_capturable:
        return None
    capturable_names = " or ".join(name for name, spec in OPTIMIZERS.items() if spec.is_capturable)
    return f"optimizer={config.name} cannot be captured (use {capturable_names})"


def build_optimizer(
    config: OptimizerConfig, module: nn.Module, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer of `module`'s trainable parameters, fused where torch supports it.

    A `capturable` optimizer counts its steps on the device, so that a CUDA graph can contain its step.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not is_elementwise(config.name):
        for parameter in parameters:  # L-BFGS flattens each tensor with view(-1), which channels last forbids
            parameter.data = parameter.data.contiguous()
    return build_joint_optimizer([config], [parameters], capturable=capturable)


def build_joint_optimizer(
    configs: Sequence[OptimizerConfig], param_groups: Sequence[Sequence[Tensor]], *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Return one optimizer of several parameter groups, `configs[i]` for `param_groups[i]`.

    Parameters may have any shape. All configurations name the same optimizer. Raises ConfigError for options that
    it rejects.
    """
    spec = _find_spec(configs[0].name)
    is_fused_supported = all(
        tensor.device.type in ("cpu", "cuda", "mps") for group in param_groups for tensor in group
    )
    flags = {"fused": True} if spec.has_fused and is_fused_supported else {}
    if capturable:
        flags["capturable"] = True
    groups = [
        {"params": list(group), **config.to_kwargs(), **flags}
        for config, group in zip(configs, param_groups, strict=True)
    ]
    try:
        return spec.optimizer_class(groups, **configs[0].to_kwargs(), **flags)
    except (TypeError, ValueError, RuntimeError) as error:
        if not isinstance(configs[0], TorchOptimizerConfig):
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"optimizer.name={configs[0].name}: {reason}. Change optimizer.options.") from None


def is_elementwise(name: str) -> bool:
    """Return whether optimizer `name` updates each element from its own gradients alone."""
    return _find_spec(name).is_elementwise


def learning_rate(config: OptimizerConfig, clock: Clock, plateau_reductions: int = 0) -> float:
    """Return the learning rate of step `clock.step`, after a number of reductions by schedule=plateau.

    It rises linearly during the warm-up, stays at `config.lr` until `decay_start`, then follows the schedule.
    "one_cycle" includes a rise from a twenty-fifth of `config.lr`.
    """
    if clock.step < config.warmup_steps:
        return config.lr * clock.step / config.warmup_steps
    if config.schedule == "plateau":
        return config.lr * config.plateau_factor**plateau_reductions
    decay_start_step = max(config.decay_start * clock.total_steps, config.warmup_steps)
    progress = max(0.0, clock.step - 1 - decay_start_step) / max(1.0, clock.total_steps - decay_start_step)
    return config.lr * SCHEDULES[config.schedule](min(1.0, progress))
