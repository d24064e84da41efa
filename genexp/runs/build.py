"""Construction of a run from its configuration: data, technique and learner."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch

from genexp.config import bind, require, suggest_choice
from genexp.data import find_dataset, load_dataset
from genexp.data.dataset import Dataset
from genexp.data.loading import SplitLoader, make_loader
from genexp.data.stream import SplitBatches, TrainingBatches, select_examples
from genexp.device import DeviceConfig, choose_device, move_to_device, use_deterministic_algorithms
from genexp.distributed.rank import RankInfo, check_divisible_batch
from genexp.errors import ConfigError
from genexp.metrics.scores import infer_direction
from genexp.run_dir.record import flatten_config
from genexp.runs.memory import check_batch_memory, check_model_memory
from genexp.seeding import seed_generators
from genexp.sharding import Shard
from genexp.technique import Batch, ClosedFormPhase, Technique, find_technique
from genexp.training.learner import Learner
from genexp.training.optimizers import plan_optimizers
from genexp.training.trainer import BatchSource, RunData, TrainerConfig

log = logging.getLogger(__name__)
REQUIRED_GROUPS = ("model", "dataset", "optimizer", "trainer", "device")
EVALUATION_BATCH_SIZE = 500  # test samples per batch
MAX_SPLIT_BATCH_ELEMENTS, MAX_SPLIT_BATCH_SIZE = (
    2**23,
    2**14,
)  # limits of a batch in passes over the training split: enough to keep all cores busy


@dataclass
class TopLevelConfig:
    """Top-level keys of conf/train.yaml that are not config groups."""

    seed: int
    resume: str | None  # directory of the run to resume
    tags: list[str]
    notes: str

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 or more, below 2**63")


@dataclass(frozen=True)
class DatasetLoaders:
    """Loaders of both splits of a data set."""

    train: SplitLoader
    test: SplitLoader


def make_loaders(dataset: Dataset, device: torch.device, resident_gb: float) -> DatasetLoaders:
    """Return loaders of both splits for `device`.

    A split of at most `resident_gb` (10⁹ bytes) is kept on the device. A larger one is read batch by batch.
    """
    return DatasetLoaders(
        make_loader(dataset.train, device, resident_gb), make_loader(dataset.test, device, resident_gb)
    )


@dataclass(frozen=True)
class Run:
    """A run that is ready to train."""

    learner: Learner
    data: RunData
    dataset: Dataset
    loaders: DatasetLoaders
    trainer_config: TrainerConfig
    seed: int

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.trainer_config.compute_total_steps(self.data.batch_source.steps_per_epoch)


def build_run(
    config: Mapping[str, Any],
    resume_state: Mapping[str, Any] | None,
    rank_info: RankInfo | None = None,
    data_source_run: Run | None = None,
) -> Run:
    """Build the run of a plain, resolved configuration, and restore `resume_state` if given. Raises GenexpError.

    `rank_info` is the rank of this process, by default that of a single process. `data_source_run` is another run
    on the same data set, whose data set and loaders are reused.
    """
    rank_info = rank_info or RankInfo()
    top_level_config = bind(TopLevelConfig, {key: config[key] for key in ("seed", "resume", "tags", "notes")}, "")
    trainer_config = _bind_trainer_config(config)
    plan = plan_optimizers(config["optimizer"])
    device_config = bind(DeviceConfig, config["device"], "device")
    device = choose_device(
        device_config, local_rank=rank_info.local_rank, local_world_size=rank_info.local_world_size
    )
    use_deterministic_algorithms(trainer_config.deterministic)
    technique, dataset = build_technique(
        config, device, top_level_config.seed, data_source_run.dataset if data_source_run else None
    )
    learner = Learner(technique, plan, trainer_config.step_settings, device)
    if resume_state is not None:
        learner.load_state_dict(resume_state)
    loaders = (
        data_source_run.loaders
        if data_source_run
        else make_loaders(dataset, device, config["dataset"]["resident_gb"])
    )
    data = _build_run_data(dataset, loaders, learner, trainer_config, rank_info, seed=top_level_config.seed)
    return Run(learner, data, dataset, loaders, trainer_config, top_level_config.seed)


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where a plain, resolved configuration is invalid. Loads no data and builds no model."""
    check_top_level_keys(config)
    bind(TopLevelConfig, {key: config[key] for key in ("seed", "resume", "tags", "notes")}, "")
    batch_size = _bind_trainer_config(config).batch_size
    plan_optimizers(config["optimizer"])
    processes = bind(DeviceConfig, config["device"], "device").processes
    if batch_size is not None:
        check_divisible_batch(batch_size, processes, f"trainer.batch_size={batch_size}")
    bind(find_dataset(config["dataset"]["name"]).config_class, config["dataset"], "dataset")
    bind_technique_config(config["model"])


def _bind_trainer_config(config: Mapping[str, Any]) -> TrainerConfig:
    trainer = bind(TrainerConfig, config["trainer"], "trainer")
    expected_direction = infer_direction(trainer.objective.removeprefix("test/"))
    if expected_direction not in (None, trainer.direction):
        raise ConfigError(
            f"trainer.direction={trainer.direction} contradicts trainer.objective={trainer.objective}, of which "
            f"{'more' if expected_direction == 'max' else 'less'} is better; "
            f"set trainer.direction={expected_direction}"
        )
    return trainer


def bind_technique_config(model: Mapping[str, Any]) -> tuple[type[Technique], Any]:
    """Return the technique class that a `model` node names, and its bound `Config`. Raises ConfigError."""
    cls = find_technique(model["name"])
    values = {key: value for key, value in model.items() if key not in ("name", "recipe")}
    return cls, bind(cls.Config, values, "model")


def check_top_level_keys(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where a required group is missing or a top-level key is unknown."""
    for key in REQUIRED_GROUPS:
        if key not in config:
            raise ConfigError(f"{key} is missing from the configuration; choose {key}=NAME")
    known = [*REQUIRED_GROUPS, *(field.name for field in fields(TopLevelConfig))]
    for key in config:
        if key not in known:
            choices = {*known, *(name for name, _ in flatten_config(config))} - {key}
            raise ConfigError(f"{key} is no key of this configuration; {suggest_choice(key, choices)}")


def build_technique(
    config: Mapping[str, Any], device: torch.device, seed: int, dataset: Dataset | None = None
) -> tuple[Technique, Dataset]:
    """Return the technique of a plain, resolved configuration, on `device`, and its data set. Raises GenexpError.

    The data set is loaded unless `dataset` is given.
    """
    cls, technique_config = bind_technique_config(config["model"])
    dataset = dataset or load_dataset(config["dataset"])
    for warning in dataset.warnings:
        log.warning(warning)
    check_model_memory(cls, technique_config, dataset.spec)
    # The string is part of the seed: another spelling would change the initial weights.
    seed_generators(device, seed, "initialise")
    technique = move_to_device(cls(technique_config, dataset.spec), device)
    technique.prepare_evaluation(dataset)
    return technique, dataset


def _build_run_data(
    dataset: Dataset,
    loaders: DatasetLoaders,
    learner: Learner,
    trainer_config: TrainerConfig,
    rank_info: RankInfo,
    *,
    seed: int,
) -> RunData:
    # If all phases take the whole split, no batches are needed.
    is_full_batch_only = all(
        isinstance(phase, ClosedFormPhase) and phase.is_full_batch for phase in learner.phases
    )
    batch_source: BatchSource = _EmptyBatchSource()
    if not is_full_batch_only:
        batch_size = trainer_config.batch_size
        batch_label = f"trainer.batch_size={'null' if batch_size is None else batch_size}"
        size_note = "" if batch_size is not None else f" ({len(loaders.train)} samples)"
        check_divisible_batch(batch_size or len(loaders.train), rank_info.world_size, batch_label + size_note)
        check_batch_memory(dataset.spec, batch_size or len(loaders.train))
        shard = Shard(rank_info.rank, rank_info.world_size)
        batch_source = TrainingBatches(
            loaders.train, batch_size, seed=seed, dataset_name=dataset.name, shard=shard
        )
    return RunData(
        batch_source=batch_source,
        train_batches=SplitBatches(loaders.train, _choose_split_batch_size(dataset)),
        test_batches=SplitBatches(loaders.test, EVALUATION_BATCH_SIZE),
        examples=select_examples(loaders.test, learner.technique.num_examples),
    )


def _choose_split_batch_size(dataset: Dataset) -> int:
    """Return the batch size of passes over the training split, by the number of elements per sample."""
    elements_per_sample = max(prod(shape) for shape in dataset.spec.shapes.values())
    return min(MAX_SPLIT_BATCH_SIZE, max(1, MAX_SPLIT_BATCH_ELEMENTS // max(1, elements_per_sample)))


class _EmptyBatchSource:
    """Batch source of a run without batches. An epoch is one step."""

    steps_per_epoch = 1

    def close(self) -> None:
        """Do nothing."""

    def iter_batches(self, first_step: int) -> Iterator[Batch]:
        """Return an endless sequence of empty batches."""
        return itertools.repeat({})
