"""Base class and registry of techniques: the interface between a learning method and the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from genexp.data.dataset import Dataset
from genexp.errors import PluginError
from genexp.registry import Registry, check_defaults, find_caller

Batch = dict[str, Tensor]  # stream name → (batch, ...) on the device; images are float in [0, 1]
Metrics = dict[str, Tensor]  # name → detached scalar, still on the device
Batches = Iterable[Batch]  # the batches of a whole split, in order; iterable more than once


@dataclass(frozen=True)
class Clock:
    """Progress of a run, in steps and epochs. Schedules are pure functions of a clock."""

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


TechniqueT = TypeVar("TechniqueT", bound="Technique")


@dataclass(frozen=True)
class PictureLabels:
    """Labels that recorders write beside the rows and above the columns of an image grid."""

    rows: Sequence[str] = ()  # from the top; empty: no labels
    columns: Sequence[str] = ()  # from the left
    is_photograph: bool = False  # True: a single photograph, not a grid; it is saved without title and labels


@dataclass(frozen=True)
class TechniquePart:
    """Function of a trained technique that other programs can use, such as its encoder. `genexp-export` writes it.

    It is deterministic, and its sizes do not depend on the values of its inputs.
    """

    compute: Callable[..., Tensor]  # `inputs` in their order → (batch, ...); a module has weights of its own
    inputs: Mapping[str, Tensor]  # name → example (batch, ...)
    output: str  # name
    ranges: Mapping[str, str] = field(
        default_factory=dict
    )  # name of an input or the output → its values, in words


class Technique(nn.Module, ABC):
    """Learning method for unlabeled data, as the phases of one step.

    Do not subclass a class registered by `register_technique`. The trainer builds it as `cls(config, spec)`. A
    checkpoint contains parameters, buffers and optimizer states. No other state may affect later steps. Random
    numbers come from torch's global generators, which the caller seeds before each call.
    """

    Config: ClassVar[type]  # dataclass of the keys in conf/model/<name>.yaml, except `name` and `recipe`
    name: ClassVar[str]  # set by `register_technique`
    # Defaults of optimizer and trainer keys, such as lr or epochs, for a technique without a YAML file.
    recipe: ClassVar[Mapping[str, Any]] = {}
    num_examples: ClassVar[int] = 10  # number of test samples given to `preview` and `render_gallery`
    # With several ranks, batch normalization takes its statistics from the global batch. If False, each rank uses
    # its own rows.
    should_sync_batch_norm: ClassVar[bool] = True

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of a step, in order. Called once, after the technique was moved to its device."""

    def prepare_evaluation(self, dataset: Dataset) -> None:
        """Prepare what `evaluate` needs from `dataset`, and set weights that no step changes.

        Called before any other method in every process: in new runs, resumed runs and evaluation commands.
        A checkpoint need not contain what this method stores. It must depend only on settings, data and seed.
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

        A `trainer.objective` that is not among these names is rejected before training. With None, the default, it
        is rejected after the first evaluation.
        """
        return None

    def get_evaluation_options(self) -> Mapping[str, Any]:
        """Return settings that the scores of `evaluate` depend on, such as the number of generated images.

        `genexp-evaluate` writes them to evaluation.json. Called after `prepare_evaluation`.
        """
        return {}

    def list_skipped_scores(self) -> Mapping[str, str]:
        """Return groups of scores that `evaluate` does not compute: name → reason and remedy, in one line.

        A run logs them at its start, and evaluation.json has them. Called after `prepare_evaluation`.
        """
        return {}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        """Return images in [0, 1] at the end of a run: (channels, height, width), or (frames, ...) if animated."""
        return {}

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        """Return the labels of previews and of gallery images: name → labels. Other images have a title only.

        `class_names[i]` is the name of class i of the data set. It is empty if the data set has no class names.
        """
        return {}

    def encode(self, batch: Batch) -> Tensor | None:
        """Return the latent codes (batch, features) of a batch, or None if the technique has no latent."""
        return None

    def list_parts(self, examples: Batch) -> dict[str, TechniquePart]:
        """Return what `genexp-export` can write, by name. Called in eval mode without gradients.

        `examples` are test samples, (batch, ...). The default has an encoder if `encode` returns codes of the
        stream "image" or "point". It has a decoder too, if the technique has a method or module `decode` or
        `decoder` for these codes.
        """
        stream = next((name for name in ("image", "point") if name in examples), None)
        codes = self.encode(examples) if stream else None
        if stream is None or codes is None:
            return {}

        def encode(samples: Tensor) -> Tensor:
            found = self.encode({stream: samples})
            assert found is not None
            return found

        ranges = {"image": "[0, 1]"} if stream == "image" else {}
        parts = {"encoder": TechniquePart(encode, {stream: examples[stream]}, "code", ranges)}
        decode = getattr(self, "decode", None)
        decode, ranges = (decode, ranges) if callable(decode) else (getattr(self, "decoder", None), {})
        if callable(decode):
            parts["decoder"] = TechniquePart(decode, {"code": codes}, stream, ranges)
        return parts

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Return a one-line warning if `metrics` show a known failure, else None.

        `metrics` are the means of one epoch and, if an evaluation ended it, the test metrics as "test/NAME".
        """
        return None

    @property
    def has_converged(self) -> bool:
        """True once training has converged: the run then ends. Read at the end of each epoch."""
        return False


TECHNIQUES: Registry[type[Technique]] = Registry(
    "technique", key="model.name", group="genexp.techniques", source="genexp.techniques"
)


def register_technique(name: str) -> Callable[[type[TechniqueT]], type[TechniqueT]]:
    """Return a class decorator that registers a technique as model=`name`. Raises PluginError.

    In this package, `name` is also the name of the module and of the YAML file.
    """
    TECHNIQUES.check_name(name)

    def register(cls: type[TechniqueT]) -> type[TechniqueT]:
        if not (isinstance(cls, type) and issubclass(cls, Technique)):
            raise PluginError(
                f"{find_caller()}: model={name}: not a technique. Use a subclass of genexp.Technique."
            )
        if not is_dataclass(getattr(cls, "Config", None)):
            raise PluginError(f"{find_caller()}: model={name}: no dataclass Config with its settings. Add one.")
        check_defaults(cls, cls.Config, f"model={name}")
        cls.name = name
        TECHNIQUES.register(name, cls)
        return cls

    return register


def list_techniques() -> list[str]:
    """Return the sorted names of all techniques. None is imported."""
    return TECHNIQUES.list_names()


def find_technique(name: str) -> type[Technique]:
    """Return the technique registered as `name`; imports only its module. Raises ConfigError if unknown."""
    return TECHNIQUES.find(name)


def get_inputs(batch: Batch) -> Tensor:
    """Return the images of a batch (batch, channels, height, width), or its points as (batch, 1, 1, features)."""
    return batch["image"] if "image" in batch else batch["point"][:, None, None]


def detach_metrics(**values: Tensor) -> Metrics:
    """Return the scalars `values`, detached, in the order given."""
    return {name: value.detach() for name, value in values.items()}
