"""A run built from its configuration: data, technique and learner, ready to begin."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch

from genexp.config import bind, suggest_choice, require
from genexp.data import find_dataset, load_dataset
from genexp.data.dataset import Dataset
from genexp.data.loading import SplitLoader, make_loader
from genexp.data.stream import BatchStream, SplitBatches, select_examples
from genexp.device import DeviceConfig, choose_device, move_to_device, use_deterministic_algorithms
from genexp.distributed.rank import Place, check_rows
from genexp.errors import ConfigError
from genexp.metrics.direction import infer_direction
from genexp.runs.resume import flatten
from genexp.seeding import seed_generators
from genexp.sharding import Shard
from genexp.technique import Batch, ClosedFormPhase, Technique, find_technique
from genexp.training.learner import Learner
from genexp.training.optimizers import plan_optimizers
from genexp.training.trainer import Feed, Material, TrainerConfig

log = logging.getLogger(__name__)
GROUPS = ("model", "dataset", "optimizer", "trainer", "device")
EVALUATION_BATCH = 500  # held-out samples at a time
WHOLE_FEATURES, WHOLE_BATCH = 2**23, 2**14  # of the training split at a time: enough to keep all cores busy


@dataclass
class RunConfig:
    """The keys at the top of conf/train.yaml."""

    seed: int
    resume: str | None
    tags: list[str]
    notes: str

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 or more, below 2**63")


@dataclass(frozen=True)
class Splits:
    """A data set within reach of the device."""

    train: SplitLoader
    test: SplitLoader


def hold_splits(dataset: Dataset, device: torch.device, gb: float) -> Splits:
    """Bring a data set within reach of `device`."""
    return Splits(make_loader(dataset.train, device, gb), make_loader(dataset.test, device, gb))


@dataclass(frozen=True)
class Run:
    """A run that is ready to begin."""

    learner: Learner
    material: Material
    dataset: Dataset
    splits: Splits
    trainer: TrainerConfig
    seed: int

    @property
    def total_steps(self) -> int:
        return self.trainer.total_steps(self.material.feed.steps_per_epoch)


def build_run(
    config: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
    place: Place | None = None,
    like: Run | None = None,
) -> Run:
    """Return what a plain, resolved configuration describes, in state `previous` if given. Raises GenexpError.

    `place` is this process's among those of the run. A run `like` it, on the same data, shares these with it.
    """
    place = place or Place()
    run = bind(RunConfig, {key: config[key] for key in ("seed", "resume", "tags", "notes")}, "")
    trainer = _trainer_config(config)
    plan = plan_optimizers(config["optimizer"])
    settings = bind(DeviceConfig, config["device"], "device")
    device = choose_device(settings, local_rank=place.local_rank, local_world_size=place.local_processes)
    use_deterministic_algorithms(trainer.deterministic)
    technique, dataset = build_technique(config, device, run.seed, like.dataset if like else None)
    learner = Learner(technique, plan, trainer.step_settings, device)
    if previous is not None:
        learner.restore(previous)
    splits = like.splits if like else hold_splits(dataset, device, config["dataset"]["resident_gb"])
    material = _material(dataset, splits, learner, trainer, place, seed=run.seed)
    return Run(learner, material, dataset, splits, trainer, run.seed)


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where a plain, resolved configuration is wrong in itself, whatever the data."""
    refuse_other_keys(config)
    bind(RunConfig, {key: config[key] for key in ("seed", "resume", "tags", "notes")}, "")
    batch_size = _trainer_config(config).batch_size
    plan_optimizers(config["optimizer"])
    processes = bind(DeviceConfig, config["device"], "device").processes
    if batch_size is not None:
        check_rows(batch_size, processes, f"trainer.batch_size={batch_size}")
    bind(find_dataset(config["dataset"]["name"]).config_class, config["dataset"], "dataset")
    technique_config(config["model"])


def _trainer_config(config: Mapping[str, Any]) -> TrainerConfig:
    trainer = bind(TrainerConfig, config["trainer"], "trainer")
    better = infer_direction(trainer.objective.removeprefix("test/"))
    if better not in (None, trainer.direction):
        raise ConfigError(
            f"trainer.direction={trainer.direction} contradicts trainer.objective={trainer.objective}, of which "
            f"{'more' if better == 'max' else 'less'} is better; set trainer.direction={better}"
        )
    return trainer


def technique_config(model: Mapping[str, Any]) -> tuple[type[Technique], Any]:
    """Return the technique that a `model` node names, and its settings. Raises ConfigError."""
    cls = find_technique(model["name"])
    settings = {key: value for key, value in model.items() if key not in ("name", "recipe")}
    return cls, bind(cls.Config, settings, "model")


def refuse_other_keys(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where a group is missing, or something stands at the top that nothing reads."""
    for key in GROUPS:
        if key not in config:
            raise ConfigError(f"{key} is missing from the configuration; choose {key}=NAME")
    known = [*GROUPS, *(field.name for field in fields(RunConfig))]
    for key in config:
        if key not in known:
            choices = {*known, *(name for name, _ in flatten(config))} - {key}
            raise ConfigError(f"{key} is no key of this configuration; {suggest_choice(key, choices)}")


def build_technique(
    config: Mapping[str, Any], device: torch.device, seed: int, dataset: Dataset | None = None
) -> tuple[Technique, Dataset]:
    """Return the technique of a plain, resolved configuration, and the data set it is for. Raises GenexpError.

    The data set is not loaded where it is given.
    """
    cls, settings = technique_config(config["model"])
    dataset = dataset or load_dataset(config["dataset"])
    for warning in dataset.warnings:
        log.warning(warning)
    seed_generators(device, seed, "initialise")
    technique = move_to_device(cls(settings, dataset.spec), device)
    technique.prepare_evaluation(dataset)
    return technique, dataset


def _material(
    dataset: Dataset, splits: Splits, learner: Learner, trainer: TrainerConfig, place: Place, *, seed: int
) -> Material:
    # Phases that take the whole split have no use for batches: none is made.
    idle = all(isinstance(phase, ClosedFormPhase) and phase.is_full_batch for phase in learner.phases)
    feed: Feed = _NoBatches()
    if not idle:
        size = trainer.batch_size
        what = f"trainer.batch_size={'null' if size is None else size}"
        of = "" if size is not None else f" ({len(splits.train)} samples)"
        check_rows(size or len(splits.train), place.processes, what + of)
        part = Shard(place.rank, place.processes)
        feed = BatchStream(splits.train, size, seed=seed, dataset_name=dataset.name, shard=part)
    return Material(
        feed=feed,
        train=SplitBatches(splits.train, _whole_batch(dataset)),
        test=SplitBatches(splits.test, EVALUATION_BATCH),
        examples=select_examples(splits.test, learner.technique.example_count),
    )


def _whole_batch(dataset: Dataset) -> int:
    """Return how many samples to take at a time where all of them are passed over."""
    features = max(prod(shape) for shape in dataset.spec.shapes.values())
    return min(WHOLE_BATCH, max(1, WHOLE_FEATURES // max(1, features)))


class _NoBatches:
    steps_per_epoch = 1

    def close(self) -> None:
        """Nothing to close."""

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Return empty batches without end."""
        return itertools.repeat({})
