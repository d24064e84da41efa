"""Float hyperparameters that differ between ensemble members, and checks that nothing else differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genexp.config import to_plain_config
from genexp.run_dir.record import flatten_config
from genexp.runs.config import bind_model
from genexp.sweep.config import UNHASHED_KEYS
from genexp.sweep.job import Job
from genexp.training.optimizers import is_elementwise

MODULE_ATTRIBUTES = set(vars(nn.Module()))  # attributes of every nn.Module, excluded from the comparison
FLOAT_PLACEHOLDER = "a number"  # replaces any float hyperparameter when configurations are compared
# Keys of the trainer that change how a run computes its steps.
SINGLE_RUN_KEYS = {
    "accumulate": "divides each batch",
    "compile": "compiles the losses of each run",
    "debug": "checks the operations of each run",
}


class IncompatibleRunsError(Exception):
    """Error of runs that cannot be one ensemble. The message is the reason."""


@dataclass(frozen=True)
class VaryingHyperparameter:
    """Float attribute that differs between members. `owner` is an object in the technique of the first member."""

    owner: Any  # the object that has the attribute
    attribute: str
    name: str  # dotted path within the technique, for example config.beta
    values: tuple[float, ...]  # one value per member


class VaryingHyperparameters:
    """Float hyperparameters that differ between techniques, stacked along the leading axis.

    Raises IncompatibleRunsError where anything except these floats and the weights differs.
    """

    def __init__(self, techniques: Sequence[nn.Module]) -> None:
        self.entries: list[VaryingHyperparameter] = []
        self._active_values: dict[int, tuple[float, ...]] = {}
        if not techniques:
            return
        module_names = [[name for name, _ in technique.named_modules()] for technique in techniques]
        _require(
            all(technique_names == module_names[0] for technique_names in module_names),
            "their networks have different layers",
        )
        for modules in zip(*(technique.named_modules() for technique in techniques), strict=True):
            (path, first), member_modules = modules[0], [module for _, module in modules]
            _require(
                all(type(member_module) is type(first) for member_module in member_modules),
                f"{path or 'model'} has different types",
            )
            for key in vars(first).keys() - MODULE_ATTRIBUTES:
                self._collect_differences(
                    [vars(module).get(key) for module in member_modules],
                    first,
                    key,
                    f"{path}.{key}".removeprefix("."),
                )
        for method_name in ("named_parameters", "named_buffers"):
            shapes_and_dtypes = [
                {n: (t.shape, t.dtype) for n, t in getattr(technique, method_name)()} for technique in techniques
            ]
            for name, shape_and_dtype in shapes_and_dtypes[0].items():
                _require(
                    all(each.get(name) == shape_and_dtype for each in shapes_and_dtypes),
                    f"{name} has different shapes",
                )

    def stack_values(self, device: torch.device) -> list[Tensor]:
        """Return each hyperparameter as a tensor of shape `(members,)` in torch's default dtype."""
        return [
            torch.tensor(entry.values, dtype=torch.get_default_dtype(), device=device) for entry in self.entries
        ]

    @contextmanager
    def substitute(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Replace the hyperparameters by `tensors`, one scalar each under vmap, while the block runs."""
        for entry, tensor in zip(self.entries, tensors, strict=True):
            object.__setattr__(entry.owner, entry.attribute, tensor)
            self._active_values[id(tensor)] = entry.values
        try:
            yield
        finally:
            self._active_values.clear()
            for entry in self.entries:
                object.__setattr__(entry.owner, entry.attribute, entry.values[0])

    def get_member_values(self, value: float | Tensor, member_count: int) -> tuple[float, ...]:
        """Return the value of a hyperparameter for each member. A plain float is repeated `member_count` times.

        `value` is a float, or one of the scalar tensors that `substitute` received.
        """
        return self._active_values[id(value)] if isinstance(value, Tensor) else (value,) * member_count

    def _collect_differences(self, values: Sequence[Any], owner: Any, key: str, name: str) -> None:
        first = values[0]
        if all(value is first for value in values):
            return
        _require(all(type(value) is type(first) for value in values), f"{name} has different types")
        if isinstance(first, float):
            if any(value != first for value in values):
                self.entries.append(VaryingHyperparameter(owner, key, name, tuple(values)))
        elif isinstance(first, Tensor):
            _require(all(torch.equal(value, first) for value in values), f"{name} differs")
        elif is_dataclass(first) and not isinstance(first, type):
            for field in fields(first):
                parts = [getattr(value, field.name) for value in values]
                self._collect_differences(parts, first, field.name, f"{name}.{field.name}")
        elif isinstance(first, Mapping | list | tuple):
            items = [_as_mapping(value) for value in values]
            _require(all(item.keys() == items[0].keys() for item in items), f"{name} differs")
            for part in items[0]:
                elements = [each[part] for each in items]
                if all(isinstance(entry, float) for entry in elements):
                    _require(all(entry == elements[0] for entry in elements), f"{name} differs")
                else:
                    self._collect_differences(elements, None, str(part), f"{name}.{part}")
        elif _uses_default_eq(first):
            for part in vars(first):
                self._collect_differences(
                    [vars(value).get(part) for value in values], first, part, f"{name}.{part}"
                )
        else:
            _require(all(value == first for value in values), f"{name} differs")


def _uses_default_eq(value: object) -> bool:
    """Return whether an object has a `__dict__` and its class defines no `__eq__`."""
    has_eq = any("__eq__" in vars(kind) for kind in type(value).__mro__[:-1])
    return hasattr(value, "__dict__") and not has_eq


def _as_mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else dict(enumerate(value))


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise IncompatibleRunsError(reason)


def group_jobs(jobs: Sequence[Job]) -> list[list[Job]]:
    """Group the jobs that differ only in seed, optimizer settings and float hyperparameters of the model.

    Within a group, jobs with equal optimizer settings are adjacent.
    """
    jobs_by_config: dict[str, list[Job]] = {}
    for job in jobs:
        jobs_by_config.setdefault(
            json.dumps([job.until_epoch, _extract_fixed_config(job)], sort_keys=True), []
        ).append(job)
    return [sorted(group, key=_get_optimizer_key) for group in jobs_by_config.values()]


def find_incompatibility(group: Sequence[Job]) -> str | None:
    """Return the reason why a group cannot be one ensemble, or None if its configuration shows none."""
    config = to_plain_config(group[0].config)
    name, processes = config["optimizer"]["name"], config["device"]["processes"]
    if processes > 1:
        return f"device.processes={processes} divides each run"
    for key, reason in SINGLE_RUN_KEYS.items():
        value = config["trainer"][key]
        if value is True or value > 1:
            return f"trainer.{key} {reason}"
    if "plateau" in dict(flatten_config(config["optimizer"])).values():  # of one phase, or of all
        return "optimizer.schedule=plateau depends on the scores of a run"
    if config["trainer"]["early_stopping"] is not None:
        return "trainer.early_stopping ends the jobs at different steps"
    return None if is_elementwise(name) else f"a step of optimizer={name} depends on all weights of a run"


def format_differing_keys(groups: Sequence[Sequence[Job]]) -> str:
    """Return the names of the keys in which groups differ, without those that may differ within a group."""
    configs = [dict(flatten_config(_extract_fixed_config(group[0]))) for group in groups]
    keys = sorted({key for config in configs for key in config})
    return ", ".join(key for key in keys if len({json.dumps(config.get(key)) for config in configs}) > 1)


def _extract_fixed_config(job: Job) -> dict[str, Any]:
    """Return a job's configuration without the values that may differ between ensemble members."""
    config = {
        key: value for key, value in to_plain_config(job.config).items() if key not in (*UNHASHED_KEYS, "seed")
    }
    _, settings = bind_model(config["model"])
    float_names = {field.name for field in fields(settings) if isinstance(getattr(settings, field.name), float)}
    model = {
        key: FLOAT_PLACEHOLDER if key in float_names else value
        for key, value in config["model"].items()
        if key != "recipe"
    }
    return {**config, "model": model, "optimizer": {"name": config["optimizer"]["name"]}}


def _get_optimizer_key(job: Job) -> str:
    return json.dumps(to_plain_config(job.config)["optimizer"], sort_keys=True)
