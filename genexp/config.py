"""From composed YAML to typed, checked dataclasses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genexp.errors import ConfigError

GROUPS = ("model", "dataset", "optimizer", "trainer", "device", "experiment")  # folders of conf/ to choose from
Bound = TypeVar("Bound")
IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", NoneType: "null"}
PLURALS = {int: "whole numbers", float: "numbers", str: "words"}


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
    and every key of `node` must be a field. An empty `group` stands for the top of the configuration.
    """
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    given = {str(key): value for key, value in values.items() if value != MISSING}  # type: ignore[union-attr]
    _check_keys(set(given), {field.name for field in fields(cls)}, group)  # type: ignore[arg-type]
    typed = OmegaConf.structured(cls)
    for key, value in given.items():
        try:
            typed.merge_with({key: value})
        except OmegaConfBaseException:
            shown = "null" if value is None else value
            raise ConfigError(f"{_full(group, key)}={shown}: give {_in_words(get_type_hints(cls)[key])}") from None
    try:
        bound = OmegaConf.to_object(typed)
    except FieldError as error:
        raise ConfigError(f"{_full(group, error.key)}={error.value}: {error.remedy}") from None
    assert isinstance(bound, cls)
    return bound


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint naming the choice nearest to `word`, or all choices where none is near."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"choose one of: {', '.join(choices)}"


def _check_keys(given: set[str], known: set[str], group: str) -> None:
    for key in sorted(given - known):
        raise ConfigError(f"{_full(group, key)} is no key of {group}; {nearest(key, known)}")
    for key in sorted(known - given):
        raise ConfigError(f"{_full(group, key)} is missing; set {_full(group, key)}=VALUE")


def _full(group: str, key: str) -> str:
    return f"{group}.{key}" if group else key


def _in_words(kind: Any) -> str:
    """Return what a value of a type annotation is: "a whole number or null" for int | None."""
    if kind in IN_WORDS:
        return IN_WORDS[kind]
    parts = get_args(kind)
    if get_origin(kind) in (list, tuple):
        return f"a list of {PLURALS[parts[0]]}"
    return " or ".join(map(_in_words, parts)) if get_origin(kind) in (Union, UnionType) else "a value of its type"
