"""What may differ between techniques that learn as one: numbers, which then are tensors with a value a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

MODULE_ATTRIBUTES = set(vars(nn.Module()))  # what every module has, of which weights may differ


class UnlikeError(Exception):
    """Runs cannot be one computation; the message says why."""


@dataclass(frozen=True)
class Number:
    """A float that differs between rows: an attribute of an object that the first row's technique holds."""

    holder: Any
    attribute: str
    name: str  # as a user knows it, or nearly
    values: tuple[float, ...]  # one a row


class Numbers:
    """The floats in which techniques differ. Raises UnlikeError where anything else differs but the weights."""

    def __init__(self, techniques: Sequence[nn.Module]) -> None:
        self.found: list[Number] = []
        self._now: dict[int, tuple[float, ...]] = {}
        if not techniques:
            return
        names = [[name for name, _ in technique.named_modules()] for technique in techniques]
        _require(all(each == names[0] for each in names), "the layers of their networks differ")
        for modules in zip(*(technique.named_modules() for technique in techniques), strict=True):
            (path, first), rows = modules[0], [module for _, module in modules]
            _require(all(type(row) is type(first) for row in rows), f"{path or 'model'} is of different kinds")
            for key in vars(first).keys() - MODULE_ATTRIBUTES:
                self._compare([vars(row).get(key) for row in rows], first, key, f"{path}.{key}".removeprefix("."))
        for kind in ("named_parameters", "named_buffers"):
            tensors = [{n: (t.shape, t.dtype) for n, t in getattr(each, kind)()} for each in techniques]
            for name, shape in tensors[0].items():
                _require(all(each.get(name) == shape for each in tensors), f"{name} has different shapes")

    def stacked(self, device: torch.device) -> list[Tensor]:
        """Return each number as (rows,), in torch's default precision."""
        return [
            torch.tensor(number.values, dtype=torch.get_default_dtype(), device=device) for number in self.found
        ]

    @contextmanager
    def replaced(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Let the technique meet `tensors` where its numbers are, while the block runs."""
        for number, tensor in zip(self.found, tensors, strict=True):
            object.__setattr__(number.holder, number.attribute, tensor)
            self._now[id(tensor)] = number.values
        try:
            yield
        finally:
            self._now.clear()
            for number in self.found:
                object.__setattr__(number.holder, number.attribute, number.values[0])

    def values(self, number: float | Tensor, rows: int) -> tuple[float, ...]:
        """Return what a number is in each row, whether it differs or not."""
        return self._now[id(number)] if isinstance(number, Tensor) else (number,) * rows

    def _compare(self, values: Sequence[Any], holder: Any, key: str, name: str) -> None:
        first = values[0]
        if all(value is first for value in values):
            return
        _require(all(type(value) is type(first) for value in values), f"{name} is of different kinds")
        if isinstance(first, float):
            if any(value != first for value in values):
                self.found.append(Number(holder, key, name, tuple(values)))
        elif isinstance(first, Tensor):
            _require(all(torch.equal(value, first) for value in values), f"{name} differs")
        elif is_dataclass(first) and not isinstance(first, type):
            for field in fields(first):
                parts = [getattr(value, field.name) for value in values]
                self._compare(parts, first, field.name, f"{name}.{field.name}")
        elif isinstance(first, Mapping | list | tuple):
            items = [_items(value) for value in values]
            _require(all(each.keys() == items[0].keys() for each in items), f"{name} differs")
            for part in items[0]:
                entries = [each[part] for each in items]
                if all(isinstance(entry, float) for entry in entries):
                    _require(all(entry == entries[0] for entry in entries), f"{name} differs")
                else:
                    self._compare(entries, None, str(part), f"{name}.{part}")
        elif _bare(first):
            for part in vars(first):
                self._compare([vars(value).get(part) for value in values], first, part, f"{name}.{part}")
        else:
            _require(all(value == first for value in values), f"{name} differs")


def _bare(value: object) -> bool:
    """Return whether an object has attributes and nothing that compares it with others."""
    compares = any("__eq__" in vars(kind) for kind in type(value).__mro__[:-1])
    return hasattr(value, "__dict__") and not compares


def _items(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else dict(enumerate(value))


def _require(alike: bool, reason: str) -> None:
    if not alike:
        raise UnlikeError(reason)
