"""Typed configuration of an experiment, bound once from the composed YAML."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from genexp.config import bind, require, suggest_choice
from genexp.data.registry import DatasetConfig, bind_dataset
from genexp.device import DeviceConfig
from genexp.distributed.rank import check_divisible_batch
from genexp.errors import ConfigError, PluginError
from genexp.metrics import METRICS
from genexp.metrics.scores import infer_direction
from genexp.recorders import DEFAULT_OPTIONS, DEFAULT_RECORDERS, PERMANENT_RECORDERS, RECORDERS
from genexp.run_dir.config_file import check_no_interpolations
from genexp.run_dir.record import flatten_config
from genexp.technique import Technique, find_technique
from genexp.training.optimizers import OPTIMIZERS, OptimizerPlan, plan_optimizers
from genexp.training.trainer import TrainerConfig

# Values of keys of the trainer that runs of earlier versions do not have.
ADDED_TRAINER_KEYS: Mapping[str, Any] = {
    "metrics": [],
    "epoch_steps": None,
    "accumulate": 1,
    "compile": False,
    "debug": False,
    "final_checkpoint": "full",
}
MAX_SEED = 2**63 - 1  # of torch's generators
REQUIRED_GROUPS = ("model", "dataset", "optimizer", "trainer", "device")


@dataclass
class TopLevelConfig:
    """Top-level keys of conf/train.yaml that are not config groups."""

    seed: int
    resume: str | None  # directory of the run to resume
    tags: list[str]
    notes: str
    recorders: dict[str, Any]  # name → True, False, or keyword parameters of the recorder

    def __post_init__(self) -> None:
        for name, value in self.recorders.items():
            key = f"recorders.{name}"
            if name in DEFAULT_RECORDERS:
                _check_default_recorder(key, value, DEFAULT_OPTIONS.get(name, {}))
                continue
            if name in PERMANENT_RECORDERS:
                raise ConfigError(f"{key}={value}: is always written. Remove it.")
            try:
                RECORDERS.find(name)  # imports the plugins
            except PluginError:
                raise
            except ConfigError:
                choices = [*DEFAULT_RECORDERS, *RECORDERS.list_names()]
                raise ConfigError(f"{key}={value}: unknown recorder. {suggest_choice(name, choices)}") from None
            is_valid = value is None or isinstance(value, bool | Mapping)
            require(is_valid, key, value, "must be true, false, or a mapping of its options")
            RECORDERS.check("recorders", name, value if isinstance(value, Mapping) else None, key)
            for package in getattr(RECORDERS.find(name), "packages", ()) if value else ():
                rule = f"requires the package {package}. Run `pip install 'genexp[{package}]'`"
                require(importlib.util.find_spec(package) is not None, key, value, rule)
        require(0 <= self.seed <= MAX_SEED, "seed", self.seed, "must be in [0, 2**63)")


def _check_default_recorder(key: str, value: Any, options: Mapping[str, type]) -> None:
    if options and isinstance(value, Mapping):
        for name, option in value.items():
            if name not in options:
                raise ConfigError(f"{key}.{name}: unknown key. Use {', '.join(options)}.")
            require(isinstance(option, options[name]), f"{key}.{name}", option, "must be true or false")
        return
    require(value is None or isinstance(value, bool), key, value, "must be true or false")


@dataclass
class ExperimentConfig(TopLevelConfig):
    """All settings of a run, checked."""

    technique: type[Technique]
    model: Any  # instance of `technique.Config`
    dataset: DatasetConfig
    optimizer: OptimizerPlan
    trainer: TrainerConfig
    device: DeviceConfig
    values: Mapping[str, Any]  # the same as plain values, for config.yaml and recorders; `resume` is None


def bind_experiment(values: Mapping[str, Any]) -> ExperimentConfig:
    """Return the typed configuration of plain, resolved values. Loads no data. Raises ConfigError."""
    _check_top_level_keys(values)
    check_no_interpolations(values)  # config.yaml could not be read again
    values = {"recorders": {}, **values}  # runs of earlier versions have no such key
    top_level_keys = [field.name for field in fields(TopLevelConfig)]
    top_level = bind(TopLevelConfig, {key: values[key] for key in top_level_keys if key in values}, "")
    trainer = _bind_trainer(values["trainer"])
    optimizer = plan_optimizers(values["optimizer"])
    _check_schedules(optimizer, trainer)
    device = bind(DeviceConfig, values["device"], "device")
    if trainer.batch_size is not None:
        check_divisible_batch(trainer.batch_size, device.processes, f"trainer.batch_size={trainer.batch_size}")
    dataset = bind_dataset(values["dataset"])
    technique, model = bind_model(values["model"])
    return ExperimentConfig(
        **vars(top_level),
        technique=technique,
        model=model,
        dataset=dataset,
        optimizer=optimizer,
        trainer=trainer,
        device=device,
        values={**values, "resume": None},
    )


def bind_model(node: Mapping[str, Any]) -> tuple[type[Technique], Any]:
    """Return the technique class that a `model` node names, and its bound `Config`. Raises ConfigError."""
    technique = find_technique(node.get("name", "null"))
    values = {key: value for key, value in node.items() if key not in ("name", "recipe")}
    _check_recipe(node.get("recipe"))
    return technique, bind(technique.Config, values, "model")


def _check_recipe(recipe: Any) -> None:
    """Raise ConfigError where a model's recipe has a key that no optimizer and no trainer reads."""
    keys = {field.name for spec in OPTIMIZERS.values() for field in fields(spec.config_class)} - {"name"}
    keys |= {field.name for field in fields(TrainerConfig)}
    for key in recipe if isinstance(recipe, Mapping) else ():
        if key not in keys:
            raise ConfigError(f"model.recipe.{key}: not read by an optimizer or trainer. Remove it.")


def _bind_trainer(node: Mapping[str, Any]) -> TrainerConfig:
    trainer = bind(TrainerConfig, {**ADDED_TRAINER_KEYS, **node}, "trainer")
    for name in trainer.metrics:
        METRICS.find(name)
    expected_direction = infer_direction(trainer.objective)
    if expected_direction not in (None, trainer.direction):
        raise ConfigError(
            f"trainer.direction={trainer.direction}: {'higher' if expected_direction == 'max' else 'lower'} "
            f"values of trainer.objective={trainer.objective} are better. "
            f"Use trainer.direction={expected_direction}."
        )
    return trainer


def _check_schedules(optimizer: OptimizerPlan, trainer: TrainerConfig) -> None:
    """Raise ConfigError where a learning rate depends on evaluations that are never done."""
    for config in (optimizer.shared_config, *optimizer.phase_configs.values()):
        if config.schedule == "plateau" and not trainer.evaluate_every:
            raise ConfigError(
                "optimizer.schedule=plateau: requires trainer.evaluate_every above 0. "
                "Use trainer.evaluate_every=1, or optimizer.schedule=cosine."
            )


def _check_top_level_keys(values: Mapping[str, Any]) -> None:
    """Raise ConfigError where a required group is missing or a top-level key is unknown."""
    for key in REQUIRED_GROUPS:
        if key not in values:
            raise ConfigError(f"{key}: missing. Set {key}=NAME.")
    top_level_keys = [field.name for field in fields(TopLevelConfig)]
    for key in values:
        if key not in (*REQUIRED_GROUPS, *top_level_keys):
            choices = {*REQUIRED_GROUPS, *top_level_keys, *(name for name, _ in flatten_config(values))} - {key}
            raise ConfigError(f"{key}: unknown key. {suggest_choice(key, choices)}")
