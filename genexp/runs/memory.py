"""Lower bounds of the memory of a run, computed from its configuration before anything is allocated."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import fields, replace
from math import prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from genexp.config import FieldError
from genexp.data.dataset import DataSpec
from genexp.device import check_memory
from genexp.errors import GenexpError
from genexp.technique import Technique

log = logging.getLogger(__name__)
# If all integers in its settings are below this, a network has at most a few gigabytes of weights: not checked.
LARGE_SIZE = 3000
FLOAT_BYTES = 4


def check_model_memory(cls: type[Technique], config: Any, spec: DataSpec) -> None:
    """Raise ConfigError if the parameters and buffers of a technique exceed the available memory.

    The technique is built on torch's meta device, which computes shapes and allocates nothing. The error names the
    setting that contributes most. A technique that cannot be built there is not checked.
    """
    sizes = dict(_iter_sizes(config))
    if max(sizes.values(), default=0) < LARGE_SIZE:
        return
    needed_bytes = _count_model_bytes(cls, config, spec)
    if needed_bytes:
        # The setting whose halving reduces the model most.
        key = min(sizes, key=lambda name: _count_halved_bytes(cls, config, name, spec) or needed_bytes)
        check_memory(needed_bytes, f"model.{key}={_format_value(getattr(config, key))}")


def check_batch_memory(spec: DataSpec, batch_size: int) -> None:
    """Raise ConfigError if one training batch in float32 exceeds the available memory."""
    stream, shape = max(spec.shapes.items(), key=lambda item: prod(item[1]))
    shape_text = "×".join(map(str, shape))
    check_memory(
        batch_size * prod(shape) * FLOAT_BYTES, f"trainer.batch_size={batch_size} of {shape_text} ({stream})"
    )


def _iter_sizes(config: Any) -> Iterator[tuple[str, int]]:
    """Yield (key, largest integer) of each setting that contains integers."""
    for field in fields(config):
        value = getattr(config, field.name)
        numbers = [item for item in (value if isinstance(value, list) else [value]) if type(item) is int]
        if numbers:
            yield field.name, max(numbers)


def _count_halved_bytes(cls: type[Technique], config: Any, key: str, spec: DataSpec) -> int | None:
    """Return the bytes of a technique with half of a setting, or None if the setting cannot be halved."""
    try:
        return _count_model_bytes(cls, _halve(config, key), spec)
    except FieldError:
        return None


def _halve(config: Any, key: str) -> Any:
    value = getattr(config, key)
    halved = [max(1, number // 2) for number in value] if isinstance(value, list) else max(1, value // 2)
    return replace(config, **{key: halved})


def _count_model_bytes(cls: type[Technique], config: Any, spec: DataSpec) -> int | None:
    """Return the bytes of all parameters and buffers, or None if the meta device cannot hold the technique.

    torch raises RuntimeError if a plugin uses operations that the meta device lacks. A test checks that every
    built-in technique can be built there.
    """
    try:
        with torch.device("meta"), _WithoutNormalDraws():
            technique = cls(config, spec)
    except GenexpError:
        return None  # the construction of the technique raises the same error
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        log.warning(f"the memory of model={cls.name} is not checked before it is built ({reason})")
        return None
    return sum(tensor.nbytes for tensor in itertools.chain(technique.parameters(), technique.buffers()))


class _WithoutNormalDraws(TorchFunctionMode):
    """Leaves memory uninitialized instead of drawing normal values.

    The meta device has no normal draws of its own. For them torch would import its compiler, which takes longer
    than the rest of the check.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__.endswith("normal_"):  # of a tensor, or of `torch.nn.init`
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            return torch.empty(*args, **{name: value for name, value in kwargs.items() if name != "generator"})
        return func(*args, **kwargs)


def _format_value(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
