"""Binding of composed YAML to typed, validated dataclasses."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genexp.errors import ConfigError

MAX_LISTED_CHOICES = 30  # in an error message
CONFIG_GROUPS = (
    "model",
    "dataset",
    "optimizer",
    "trainer",
    "device",
    "experiment",
)  # folders of conf/ in which a command line can choose a file
ConfigT = TypeVar("ConfigT")
TYPE_DESCRIPTIONS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    NoneType: "null",
}
PLURAL_TYPE_DESCRIPTIONS = {int: "integers", float: "numbers", str: "strings"}


class FieldError(Exception):
    """Error of a field whose value breaks a rule. `bind` converts it to a ConfigError with the full key."""

    def __init__(self, key: str, value: object, rule: str) -> None:
        super().__init__(key, value, rule)
        self.key, self.value, self.rule = key, value, rule


def scale_epochs(factor: float, epochs: int) -> int:
    """Return `factor` times a number of epochs, rounded, at least 1; 0 for 0. Presets of the trainer call it."""
    return max(1, round(factor * epochs)) if epochs else 0


OmegaConf.register_new_resolver("scale_epochs", scale_epochs, replace=True)


def find_config_dir() -> Path:
    """Return the conf/ directory: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    packaged_dir = package / "conf"
    return packaged_dir if packaged_dir.is_dir() else package.parent / "conf"


def require(condition: bool, key: str, value: object, rule: str) -> None:
    """Raise FieldError unless `condition` holds. For the `__post_init__` of config dataclasses.

    `rule` completes the message "model.noise=-1: …", for example "must be 0 or more".
    """
    if not condition:
        raise FieldError(key, value, rule)


def bind(cls: type[ConfigT], node: Mapping[str, Any] | DictConfig, group: str) -> ConfigT:
    """Return `node` as an instance of the dataclass `cls`. Raises ConfigError with the key `group`.key.

    Every field must be in `node`, because a default in code alone could not be seen or overridden. Every key of
    `node` must be a field. An empty `group` stands for the top level of the configuration.
    """
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    node_values = {str(key): value for key, value in values.items() if value != MISSING}  # type: ignore[union-attr]
    _check_keys(set(node_values), {field.name for field in fields(cls)}, group)  # type: ignore[arg-type]
    structured_config = copy.deepcopy(_build_schema(cls))  # type: ignore[arg-type]
    annotations = get_type_hints(cls)
    for key, value in node_values.items():
        # OmegaConf would convert lists to strings, and any number other than 0 to true.
        is_invalid_bool = annotations[key] is bool and isinstance(value, int | float) and value not in (0, 1)
        if is_invalid_bool or _has_nested_items(value, annotations[key]):
            raise _build_type_error(group, key, value, annotations[key])
    try:
        structured_config.merge_with(node_values)  # all at once: a sweep binds hundreds of configurations
    except OmegaConfBaseException:
        for key, value in node_values.items():
            try:
                structured_config.merge_with({key: value})
            except OmegaConfBaseException:
                raise _build_type_error(group, key, value, annotations[key]) from None
        raise
    try:
        instance = OmegaConf.to_object(structured_config)
    except FieldError as error:
        rule = error.rule if error.rule.endswith((".", "?")) else f"{error.rule}."
        raise ConfigError(f"{_join_key(group, error.key)}={error.value}: {rule}") from None
    assert isinstance(instance, cls)
    return instance


@cache  # building one takes as long as the rest of `bind`
def _build_schema(cls: Any) -> DictConfig:
    schema: DictConfig = OmegaConf.structured(cls)
    return schema


def _build_type_error(group: str, key: str, value: object, annotation: Any) -> ConfigError:
    value_text = "null" if value is None else value
    return ConfigError(f"{_join_key(group, key)}={value_text}: must be {_describe_type(annotation)}.")


def check_option(function: Callable[..., Any], key: str, option: str, value: Any) -> None:
    """Raise FieldError unless `option` is a parameter with a default of `function`, and `value` has its type."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    if option not in defaults:
        remedy = suggest_choice(option, defaults) if defaults else "Remove it: it takes no options"
        raise FieldError(f"{key}.{option}", value, f"unknown option. {remedy}")
    default = defaults[option]
    expected = {float: (int, float), tuple: (list, tuple)}.get(type(default), type(default))
    is_number = not isinstance(value, bool) or isinstance(default, bool)
    if default is not None and not (isinstance(value, expected) and is_number):
        rule = "must be a string" if default == "" else f"must be a value such as {default}"
        raise FieldError(f"{key}.{option}", value, rule)


def to_plain_config(config: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """Return a composed configuration as nested plain values, without the nodes `hydra` and `sweep`."""
    if not resolve:
        values = {str(key): value for key, value in OmegaConf.to_container(config).items()}  # type: ignore[union-attr]
        return {key: value for key, value in values.items() if key not in ("hydra", "sweep")}
    # Node by node: `hydra` has values that cannot be resolved, and a copy without it takes longer.
    nodes = {
        str(key): MISSING if OmegaConf.is_missing(config, key) else config[key]
        for key in config
        if key not in ("hydra", "sweep")
    }
    return {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key, node in nodes.items()
    }


def suggest_choice(value: str, choices: Iterable[str]) -> str:
    """Return a sentence with the choice most similar to `value`, or with the choices if none is similar.

    A choice that has the initials of the key is preferred: `optimizer.lr` for `optimizer.learning_rate`. Of many
    choices, only the first MAX_LISTED_CHOICES are listed.
    """
    choices = sorted(choices)
    group, dot, key = value.rpartition(".")
    initials = group + dot + "".join(word[:1] for word in key.split("_"))
    matches = [initials] if initials in choices else difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    if matches:
        return f"Did you mean {matches[0]}?"
    listed = ", ".join(choices[:MAX_LISTED_CHOICES])
    return f"Use one of: {listed}{f', … ({len(choices)} in all)' if len(choices) > MAX_LISTED_CHOICES else ''}."


def _check_keys(keys: set[str], field_names: set[str], group: str) -> None:
    for key in sorted(keys - field_names):
        raise ConfigError(f"{_join_key(group, key)}: unknown key. {suggest_choice(key, field_names)}")
    for key in sorted(field_names - keys):
        raise ConfigError(f"{_join_key(group, key)}: missing. Set {_join_key(group, key)}=VALUE.")


def _has_nested_items(value: Any, annotation: Any) -> bool:
    """Return whether `value` contains lists or mappings where its type is a list of scalars."""
    is_scalar_list = get_origin(annotation) in (list, tuple) and get_args(annotation)[0] in TYPE_DESCRIPTIONS
    return is_scalar_list and isinstance(value, list) and any(isinstance(item, list | dict) for item in value)


def _join_key(group: str, key: str) -> str:
    return f"{group}.{key}" if group else key


def _describe_type(annotation: Any) -> str:
    """Return a description of a type annotation for users: "an integer or null" for int | None."""
    if annotation in TYPE_DESCRIPTIONS:
        return TYPE_DESCRIPTIONS[annotation]
    type_args = get_args(annotation)
    if get_origin(annotation) in (list, tuple):
        return f"a list of {PLURAL_TYPE_DESCRIPTIONS[type_args[0]]}"
    if get_origin(annotation) is dict or is_dataclass(annotation):
        return "a mapping, {NAME: VALUE}"
    return (
        " or ".join(map(_describe_type, type_args))
        if get_origin(annotation) in (Union, UnionType)
        else "a value of its type"
    )
