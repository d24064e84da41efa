"""What a technique is: the only interface the trainer knows."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import ClassVar, Literal

from torch import Tensor, nn

from genexp.data.dataset import Dataset
from genexp.errors import ConfigError

Batch = dict[str, Tensor]  # stream name → tensor on the device; images are float in [0, 1]
Metrics = dict[str, Tensor]  # name → detached scalar, still on the device
Batches = Iterable[Batch]  # a whole split, in order; can be iterated again


@dataclass(frozen=True)
class Clock:
    """Where the run stands. Schedules are pure functions of it."""

    step: int  # 1-based; 0 is initialization
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Return the 1-based epoch that this step belongs to (0 before the first step)."""
        return -(-self.step // self.steps_per_epoch)

    @property
    def completed_epochs(self) -> int:
        """Return how many epochs lie behind."""
        return self.step // self.steps_per_epoch

    @property
    def is_epoch_end(self) -> bool:
        return self.step % self.steps_per_epoch == 0

    @property
    def is_last_step(self) -> bool:
        return self.step >= self.total_steps


@dataclass(frozen=True)
class GradientPhase:
    """Move `learner` down the gradient of `loss`."""

    name: str  # names its optimizer too: optimizer.discriminator.lr=1e-4
    module: nn.Module
    loss: Callable[[Batch, Clock], tuple[Tensor, Metrics]]
    every: int = 1
    is_active: Callable[[Clock], bool] = lambda clock: True  # at other times the phase rests


@dataclass(frozen=True)
class ClosedFormPhase:
    """Improve a part of the technique in closed form, from a batch or from the whole training split."""

    name: str
    update: Callable[[Batch, Clock], Metrics] | Callable[[Batches, Clock], Metrics]
    every: int = 1
    is_full_batch: bool = False  # hand `refit` the training split as Batches instead of one Batch
    is_active: Callable[[Clock], bool] = lambda clock: True


Phase = GradientPhase | ClosedFormPhase


class Technique(nn.Module, ABC):
    """A way of learning from unlabeled data, as the phases of one step.

    Subclasses are final, registered by `@register`, and built as `cls(config, spec)`. What must survive
    a resume is a parameter, a buffer or an optimizer's state; nothing else crosses steps. Randomness
    comes from torch's global generator, which is seeded before every call made here.
    """

    Config: ClassVar[type]  # a dataclass: the keys of conf/model/<name>.yaml, less `name` and `recipe`
    name: ClassVar[str]
    objective: ClassVar[str]  # the test metric by which checkpoints and sweeps are judged
    direction: ClassVar[Literal["min", "max"]] = "min"
    example_count: ClassVar[int] = 10  # how many held-out samples `preview` and `gallery` are given
    # Batch normalization sees the whole batch where several processes share it; if not, each sees its own part.
    should_sync_batch_norm: ClassVar[bool] = True

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of a step, in order. Called once, after the technique is on its device."""

    def prepare_evaluation(self, dataset: Dataset) -> None:
        """Learn what to be judged by. Called before all else, in every process: fresh, resumed or a tool.

        Nothing kept here may change a step: it is derived from the data set and in no checkpoint.
        """

    def initialize(self, samples: Batches) -> None:
        """Initialize from the training split. Called on fresh runs only, before step 1."""

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        """Return the pictures worth looking at now: name → (channels, height, width) in [0, 1].

        `examples` are the same few held-out samples each time. Each name becomes a GIF over the run.
        """
        return {}

    def evaluate(self, samples: Batches) -> dict[str, float]:
        """Return scores on held-out data. Called in eval mode without gradients."""
        return {}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        """Return the pictures of a finished run: (channels, height, width), or (frames, ...) for a GIF."""
        return {}

    def encode(self, batch: Batch) -> Tensor | None:
        """Return the latent codes (batch, features) of a batch, or None where there is no latent."""
        return None

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Return a one-line warning when an epoch's mean metrics show a known failure, else None."""
        return None

    @property
    def has_converged(self) -> bool:
        """Return whether further steps are pointless. Asked once an epoch."""
        return False


_REGISTRY: dict[str, type[Technique]] = {}


def register(cls: type[Technique]) -> type[Technique]:
    """Class decorator: make a technique known under `cls.name`, which is also its file's and its YAML's name."""
    registered = _REGISTRY.setdefault(cls.name, cls)
    assert registered.__qualname__ == cls.__qualname__, f"two techniques are named {cls.name}"
    return cls


def list_techniques() -> list[str]:
    """Return the names of all techniques, the project's own and those installed by third parties."""
    package = importlib.import_module("genexp.techniques")
    builtin_names = [
        module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")
    ]
    return sorted({*builtin_names, *(entry.name for entry in entry_points(group="genexp.techniques"))})


def find_technique(name: str) -> type[Technique]:
    """Return the technique called `name`, importing only its own module. Raises ConfigError."""
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
    """Return detached metrics, in the order given."""
    return {name: value.detach() for name, value in values.items()}
