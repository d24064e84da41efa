"""What may differ between techniques that learn as one: numbers, which then are tensors with a value a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

MODULE_ATTRIBUTES = set(vars(nn.Module()))  # what every module has, of which weights may differ


class IncompatibleRunsError(Exception):
    """Runs cannot be one computation; the message says why."""


@dataclass(frozen=True)
class VaryingValue:
    """A float that differs between rows: an attribute of an object that the first row's technique holds."""

    owner: Any
    attribute: str
    name: str  # as a user knows it, or nearly
    values: tuple[float, ...]  # one a row


class VaryingHyperparameters:
    """The floats in which techniques differ. Raises UnlikeError where anything else differs but the weights."""

    def __init__(self, techniques: Sequence[nn.Module]) -> None:
        self.entries: list[VaryingValue] = []
        self._active_values: dict[int, tuple[float, ...]] = {}
        if not techniques:
            return
        names = [[name for name, _ in technique.named_modules()] for technique in techniques]
        _require(
            all(technique_names == names[0] for technique_names in names), "the layers of their networks differ"
        )
        for modules in zip(*(technique.named_modules() for technique in techniques), strict=True):
            (path, first), rows = modules[0], [module for _, module in modules]
            _require(all(type(row) is type(first) for row in rows), f"{path or 'model'} is of different kinds")
            for key in vars(first).keys() - MODULE_ATTRIBUTES:
                self._compare([vars(row).get(key) for row in rows], first, key, f"{path}.{key}".removeprefix("."))
        for kind in ("named_parameters", "named_buffers"):
            tensors = [{n: (t.shape, t.dtype) for n, t in getattr(each, kind)()} for each in techniques]
            for name, shape in tensors[0].items():
                _require(all(each.get(name) == shape for each in tensors), f"{name} has different shapes")

    def stack_values(self, device: torch.device) -> list[Tensor]:
        """Return each number as (rows,), in torch's default precision."""
        return [
            torch.tensor(number.values, dtype=torch.get_default_dtype(), device=device) for number in self.entries
        ]

    @contextmanager
    def substitute(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Let the technique meet `tensors` where its numbers are, while the block runs."""
        for number, tensor in zip(self.entries, tensors, strict=True):
            object.__setattr__(number.owner, number.attribute, tensor)
            self._active_values[id(tensor)] = number.values
        try:
            yield
        finally:
            self._active_values.clear()
            for number in self.entries:
                object.__setattr__(number.owner, number.attribute, number.values[0])

    def get_values(self, value: float | Tensor, member_count: int) -> tuple[float, ...]:
        """Return what a number is in each row, whether it differs or not."""
        return self._active_values[id(value)] if isinstance(value, Tensor) else (value,) * member_count

    def _compare(self, values: Sequence[Any], owner: Any, key: str, name: str) -> None:
        first = values[0]
        if all(value is first for value in values):
            return
        _require(all(type(value) is type(first) for value in values), f"{name} is of different kinds")
        if isinstance(first, float):
            if any(value != first for value in values):
                self.entries.append(VaryingValue(owner, key, name, tuple(values)))
        elif isinstance(first, Tensor):
            _require(all(torch.equal(value, first) for value in values), f"{name} differs")
        elif is_dataclass(first) and not isinstance(first, type):
            for field in fields(first):
                parts = [getattr(value, field.name) for value in values]
                self._compare(parts, first, field.name, f"{name}.{field.name}")
        elif isinstance(first, Mapping | list | tuple):
            items = [_as_mapping(value) for value in values]
            _require(all(item.keys() == items[0].keys() for item in items), f"{name} differs")
            for part in items[0]:
                elements = [each[part] for each in items]
                if all(isinstance(entry, float) for entry in elements):
                    _require(all(entry == elements[0] for entry in elements), f"{name} differs")
                else:
                    self._compare(elements, None, str(part), f"{name}.{part}")
        elif _has_only_attributes(first):
            for part in vars(first):
                self._compare([vars(value).get(part) for value in values], first, part, f"{name}.{part}")
        else:
            _require(all(value == first for value in values), f"{name} differs")


def _has_only_attributes(value: object) -> bool:
    """Return whether an object has attributes and nothing that compares it with others."""
    compares = any("__eq__" in vars(kind) for kind in type(value).__mro__[:-1])
    return hasattr(value, "__dict__") and not compares


def _as_mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else dict(enumerate(value))


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise IncompatibleRunsError(reason)
