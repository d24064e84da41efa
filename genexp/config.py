"""From composed YAML to typed, checked dataclasses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genexp.errors import ConfigError

Bound = TypeVar("Bound")


class FieldError(Exception):
    """A field's value is out of range; `bind` turns it into a ConfigError that names the full key."""

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(key, value, remedy)
        self.key, self.value, self.remedy = key, value, remedy


def config_folder() -> Path:
    """Return the folder of the YAML files: beside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raise FieldError unless `condition` holds. For the `__post_init__` of config dataclasses."""
    if not condition:
        raise FieldError(key, value, remedy)


def bind(cls: type[Bound], node: Mapping[str, Any] | DictConfig, group: str) -> Bound:
    """Return `node` as an instance of the dataclass `cls`. Raises ConfigError naming `group`.key.

    Every field must be in `node` (a default that lives in code only could not be seen or overridden),
    and every key of `node` must be a field.
    """
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    values = {str(key): value for key, value in values.items()}  # type: ignore[union-attr]
    _check_keys(set(values), {field.name for field in fields(cls)}, group)  # type: ignore[arg-type]
    try:
        bound = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))
    except FieldError as error:
        raise ConfigError(f"{group}.{error.key}={error.value}: {error.remedy}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, values, group)) from None
    assert isinstance(bound, cls)
    return bound


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint naming the choice nearest to `word`, or all choices where none is near."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"choose one of: {', '.join(choices)}"


def _check_keys(given: set[str], known: set[str], group: str) -> None:
    for key in sorted(given - known):
        raise ConfigError(f"{group}.{key} is no key of {group}; {nearest(key, known)}")
    for key in sorted(known - given):
        raise ConfigError(f"{group}.{key} is missing; set {group}.{key}=VALUE")


def _explain(error: OmegaConfBaseException, values: Mapping[str, Any], group: str) -> str:
    key = error.full_key or ""
    value: Any = values
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) and part in value else value
    wanted = str(error.msg or error).splitlines()[0]
    return f"{group}.{key}={value}: {wanted}; give a value of the right type"
