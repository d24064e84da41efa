"""Base class and registry of techniques: the interface between a learning method and the trainer."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import ClassVar

from torch import Tensor, nn

from genexp.data.dataset import Dataset
from genexp.errors import ConfigError

Batch = dict[str, Tensor]  # stream name → (batch, ...) on the device; images are float in [0, 1]
Metrics = dict[str, Tensor]  # name → detached scalar, still on the device
Batches = Iterable[Batch]  # the batches of a whole split, in order; iterable more than once


@dataclass(frozen=True)
class Clock:
    """Progress of a run, in steps and epochs. Schedules are pure functions of it."""

    step: int  # 1-based; 0 before the first step
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """1-based epoch of this step; 0 before the first step."""
        return -(-self.step // self.steps_per_epoch)

    @property
    def completed_epochs(self) -> int:
        """Number of complete epochs up to and including this step."""
        return self.step // self.steps_per_epoch

    @property
    def is_epoch_end(self) -> bool:
        return self.step % self.steps_per_epoch == 0

    @property
    def is_last_step(self) -> bool:
        return self.step >= self.total_steps


@dataclass(frozen=True)
class GradientPhase:
    """Phase that updates the parameters of `module` by gradient descent on `loss`."""

    name: str  # also the key of its optimizer settings: optimizer.discriminator.lr=1e-4
    module: nn.Module
    loss: Callable[[Batch, Clock], tuple[Tensor, Metrics]]  # → scalar loss and metrics
    every: int = 1  # the phase runs at steps divisible by this
    is_active: Callable[[Clock], bool] = lambda clock: True  # steps where this is False skip the phase


@dataclass(frozen=True)
class ClosedFormPhase:
    """Phase that updates a part of the technique in closed form, from a batch or the whole training split."""

    name: str
    update: Callable[[Batch, Clock], Metrics] | Callable[[Batches, Clock], Metrics]
    every: int = 1  # the phase runs at steps divisible by this
    is_full_batch: bool = False  # `update` receives the training split as Batches, not one Batch
    is_active: Callable[[Clock], bool] = lambda clock: True  # steps where this is False skip the phase


Phase = GradientPhase | ClosedFormPhase


class Technique(nn.Module, ABC):
    """Learning method for unlabeled data, as the phases of one step.

    Registered subclasses are final and are built as `cls(config, spec)`. A checkpoint holds parameters, buffers
    and optimizer states; no other state may affect later steps. Random numbers come from torch's global
    generators, which the caller seeds before each call.
    """

    Config: ClassVar[type]  # dataclass of the keys in conf/model/<name>.yaml, except `name` and `recipe`
    name: ClassVar[str]
    num_examples: ClassVar[int] = 10  # number of test samples given to `preview` and `render_gallery`
    # With several ranks, batch normalization takes its statistics from the global batch. If False, each rank uses
    # its own rows.
    should_sync_batch_norm: ClassVar[bool] = True

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of a step, in order. Called once, after the technique was moved to its device."""

    def prepare_evaluation(self, dataset: Dataset) -> None:
        """Prepare what `evaluate` needs from `dataset`.

        Called before any other method in every process: in new runs, resumed runs and evaluation commands.
        State kept here must not affect a step: it derives from the data set and is in no checkpoint.
        """

    def initialize(self, train_batches: Batches) -> None:
        """Initialize from the training split. Called once, before step 1 of a new run."""

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        """Return preview images: name → (channels, height, width) in [0, 1].

        `examples` are the same test samples at every call. The images of one name become an animation.
        """
        return {}

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        """Return metrics on the test split. Called in eval mode without gradients."""
        return {}

    def list_metrics(self) -> Sequence[str] | None:
        """Return the names of the metrics that `evaluate` returns. Called after `prepare_evaluation`.

        A `trainer.objective` that is not among them is rejected before training. With None, the default, it is
        rejected after the first evaluation.
        """
        return None

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        """Return images in [0, 1] at the end of a run: (channels, height, width), or (frames, ...) if animated."""
        return {}

    def encode(self, batch: Batch) -> Tensor | None:
        """Return the latent codes (batch, features) of a batch, or None if the technique has no latent."""
        return None

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Return a one-line warning if `metrics` show a known failure, else None.

        `metrics` are the means of one epoch and, if an evaluation ended it, the test metrics as "test/NAME".
        """
        return None

    @property
    def has_converged(self) -> bool:
        """True once training has converged: the run then ends. Read at the end of each epoch."""
        return False


_REGISTRY: dict[str, type[Technique]] = {}


def register(cls: type[Technique]) -> type[Technique]:
    """Register a technique under `cls.name`, the name of its module and of its YAML file. A class decorator."""
    registered = _REGISTRY.setdefault(cls.name, cls)
    assert registered.__qualname__ == cls.__qualname__, f"two techniques are named {cls.name}"
    return cls


def list_techniques() -> list[str]:
    """Return the sorted names of all techniques: built-in ones and entry points of installed packages."""
    package = importlib.import_module("genexp.techniques")
    builtin_names = [
        module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")
    ]
    return sorted({*builtin_names, *(entry.name for entry in entry_points(group="genexp.techniques"))})


def find_technique(name: str) -> type[Technique]:
    """Return the technique registered as `name`; imports only its module. Raises ConfigError if unknown."""
    if name not in _REGISTRY:
        _import_technique(name)
    return _REGISTRY[name]


def _import_technique(name: str) -> None:
    third_party = entry_points(group="genexp.techniques", name=name)
    for entry in third_party:
        register(entry.load())
    if third_party:
        return
    names = list_techniques()
    if name not in names:
        close_matches = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close_matches[0]}?" if close_matches else f"choose one of {', '.join(names)}"
        raise ConfigError(f"model.name={name} is no technique; {hint}")
    importlib.import_module(f"genexp.techniques.{name}")


def detach_metrics(**values: Tensor) -> Metrics:
    """Return `values`, detached, in the order given."""
    return {name: value.detach() for name, value in values.items()}
