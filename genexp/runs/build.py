"""Construction of a run from its configuration: data, technique and learner."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from genexp.config import suggest_choice
from genexp.data import load_dataset
from genexp.data.dataset import Dataset
from genexp.data.loading import SplitLoader, make_loader
from genexp.data.stream import SplitBatches, TrainingBatches, select_examples
from genexp.device import choose_device, move_to_device, use_deterministic_algorithms
from genexp.distributed.rank import RankInfo, check_divisible_batch
from genexp.errors import ConfigError
from genexp.metrics import METRICS
from genexp.run_dir.metrics import find_metric
from genexp.runs.config import ExperimentConfig
from genexp.runs.memory import check_batch_memory, check_model_memory
from genexp.seeding import seed_generators
from genexp.sharding import Shard
from genexp.technique import Batch, ClosedFormPhase, Technique
from genexp.training.learner import Learner
from genexp.training.trainer import BatchSource, RunData

log = logging.getLogger(__name__)
EVALUATION_BATCH_SIZE = 500  # test samples per batch
# Limits of the batch size in passes over the training split: large enough to use all cores.
MAX_SPLIT_BATCH_ELEMENTS, MAX_SPLIT_BATCH_SIZE = 2**23, 2**14


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

    config: ExperimentConfig
    learner: Learner
    data: RunData
    dataset: Dataset
    loaders: DatasetLoaders

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.config.trainer.compute_total_steps(self.data.batch_source.steps_per_epoch)


def build_run(
    config: ExperimentConfig,
    resume_state: Mapping[str, Any] | None,
    rank_info: RankInfo | None = None,
    data_source_run: Run | None = None,
) -> Run:
    """Build the run of `config`, and restore `resume_state` if given. Raises GenexpError.

    `rank_info` is the rank of this process, by default that of a single process. `data_source_run` is another run
    on the same data set, whose data set and loaders are reused.
    """
    rank_info = rank_info or RankInfo()
    device = choose_device(
        config.device, local_rank=rank_info.local_rank, local_world_size=rank_info.local_world_size
    )
    use_deterministic_algorithms(config.trainer.deterministic)
    dataset = data_source_run.dataset if data_source_run else load_dataset(config.dataset)
    config, dataset = _fit_batch_size(config, dataset)
    technique = build_technique(config.technique, config.model, dataset, device, config.seed)
    if rank_info.rank == 0:
        for reason in technique.list_skipped_scores().values():
            log.warning(reason)
    config = _complete_objective(config, technique, dataset)
    learner = Learner(technique, config.optimizer, config.trainer.step_settings, device)
    if resume_state is not None:
        learner.load_state_dict(resume_state)
    loaders = (
        data_source_run.loaders if data_source_run else make_loaders(dataset, device, config.dataset.resident_gb)
    )
    data = _build_run_data(dataset, loaders, learner, config, rank_info)
    return Run(config, learner, data, dataset, loaders)


def _fit_batch_size(config: ExperimentConfig, dataset: Dataset) -> tuple[ExperimentConfig, Dataset]:
    """Return both. If data of the user has fewer samples than a batch, all are one batch, with a warning."""
    count, batch_size = len(dataset.train), config.trainer.batch_size
    if not config.dataset.is_own_data or batch_size is None or batch_size <= count:
        return config, dataset
    warning = f"trainer.batch_size={batch_size}: a batch has all {count} training samples, as there are no more"
    return (
        replace(config, trainer=replace(config.trainer, batch_size=count)),
        replace(dataset, warnings=(*dict.fromkeys((*dataset.warnings, warning)),)),
    )


def build_technique(
    cls: type[Technique], model: Any, dataset: Dataset, device: torch.device, seed: int
) -> Technique:
    """Return the technique `cls` with the settings `model`, for `dataset`, on `device`. Log warnings of `dataset`.

    Raises GenexpError.
    """
    for warning in dataset.warnings:
        log.warning(warning)
    check_model_memory(cls, model, dataset.spec)
    # The strings are part of the seeds: another spelling would change the initial weights.
    seed_generators(device, seed, "initialise")
    technique = move_to_device(cls(model, dataset.spec), device)
    seed_generators(device, seed, "begin")
    technique.prepare_evaluation(dataset)
    return technique


def _complete_objective(config: ExperimentConfig, technique: Technique, dataset: Dataset) -> ExperimentConfig:
    """Return `config` with the complete metric name in trainer.objective.

    For example, "frechet" becomes "frechet_mnist-v1". Raises ConfigError if the technique declares no such metric.
    """
    objective, names = config.trainer.objective, technique.list_metrics()
    if names is None:
        return config
    name = find_metric(objective, (*names, *config.trainer.metrics))
    if name is None:
        raise ConfigError(
            f"trainer.objective={objective}: not a test metric of model={technique.name} on "
            f"dataset={dataset.name}. {suggest_choice(objective, names)}"
        )
    return replace(config, trainer=replace(config.trainer, objective=name))


def _build_run_data(
    dataset: Dataset,
    loaders: DatasetLoaders,
    learner: Learner,
    config: ExperimentConfig,
    rank_info: RankInfo,
) -> RunData:
    # If all phases use the whole training split, no batches are needed.
    is_full_batch_only = all(
        isinstance(phase, ClosedFormPhase) and phase.is_full_batch for phase in learner.phases
    )
    batch_source: BatchSource = _EmptyBatchSource()
    augmentation = config.dataset.augmentation
    if is_full_batch_only and augmentation is not None:
        raise ConfigError(
            f"dataset.augment: no effect, because model={learner.technique.name} takes the whole training split "
            f"as it is. Remove it, or use batches (trainer.batch_size=256)."
        )
    if not is_full_batch_only:
        batch_size = config.trainer.batch_size
        batch_label = f"trainer.batch_size={'null' if batch_size is None else batch_size}"
        size_note = "" if batch_size is not None else f" ({len(loaders.train)} samples)"
        check_divisible_batch(batch_size or len(loaders.train), rank_info.world_size, batch_label + size_note)
        check_batch_memory(dataset.spec, batch_size or len(loaders.train))
        _check_accumulation(config.trainer.accumulate, batch_size or len(loaders.train), rank_info.world_size)
        shard = Shard(rank_info.rank, rank_info.world_size)
        batch_source = TrainingBatches(
            loaders.train,
            batch_size,
            seed=config.seed,
            dataset_name=dataset.name,
            shard=shard,
            augmentation=augmentation,
            max_epoch_steps=config.trainer.epoch_steps,
        )
    return RunData(
        batch_source=batch_source,
        train_batches=SplitBatches(loaders.train, _choose_split_batch_size(dataset)),
        test_batches=SplitBatches(loaders.test, EVALUATION_BATCH_SIZE),
        examples=select_examples(loaders.test, learner.technique.num_examples),
        metrics={name: METRICS.find(name) for name in config.trainer.metrics},
    )


def _check_accumulation(count: int, batch_size: int, world_size: int) -> None:
    """Raise ConfigError where a batch cannot be divided into `count` equal parts in each process."""
    rows = batch_size // world_size
    if rows % count:
        divisor = max(number for number in range(1, min(count, rows) + 1) if rows % number == 0)
        raise ConfigError(
            f"trainer.accumulate={count}: must divide the {rows} samples of a batch"
            f"{' of each process' if world_size > 1 else ''}. Use trainer.accumulate={divisor}, or another "
            f"trainer.batch_size."
        )


def _choose_split_batch_size(dataset: Dataset) -> int:
    """Return the batch size of passes over the training split, by the number of elements per sample."""
    elements_per_sample = max(prod(shape) for shape in dataset.spec.shapes.values())
    return min(MAX_SPLIT_BATCH_SIZE, max(1, MAX_SPLIT_BATCH_ELEMENTS // max(1, elements_per_sample)))


class _EmptyBatchSource:
    """Batch source of a run whose phases use the whole training split. An epoch is one step."""

    steps_per_epoch = 1

    def close(self) -> None:
        """Do nothing."""

    def iter_batches(self, first_step: int) -> Iterator[Batch]:
        """Return an endless sequence of empty batches."""
        return itertools.repeat({})
