"""Reader of untrusted YAML files: plain values only, of bounded size and depth, without tags, aliases and links.

A run directory may come from an unknown source. Therefore config.yaml is read as data only: this module resolves,
imports and calls nothing that the file names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from genexp.config import CONFIG_GROUPS
from genexp.errors import CheckpointError, ConfigError
from genexp.run_dir.files import open_regular_file
from genexp.run_dir.paths import CONFIG_FILE, HYDRA_DIR, format_path

# Top-level keys of the config.yaml of a run. The file has the values of a preset, not its name.
CONFIG_KEYS = (
    *(group for group in CONFIG_GROUPS if group != "experiment"),
    *("seed", "resume", "tags", "notes", "recorders"),
)
MAX_BYTES = 2**18  # a configuration has about 1,000 bytes
MAX_DEPTH = 16  # of nested lists and mappings
SPECIAL_KEY_PATTERN = re.compile(r"_\w*_")  # keys that Hydra interprets, such as _target_
_REFERENCE_PATTERN = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,([^${}]*))?\}")
MAX_REFERENCES = 10  # limit on the chain of references from one value


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is much faster
    """Loader of mappings with string keys, lists, strings, numbers, booleans and nulls."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node. Raises YAMLError for a key that is repeated or not a string."""
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:str" or key_node.value in keys:
                raise yaml.MarkedYAMLError(
                    problem="a key that is repeated or not a string", problem_mark=key_node.start_mark
                )
            keys.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


# Numbers and dates are read as OmegaConf reads them: 1e-3 is a number; a date is text.
_PlainLoader.yaml_implicit_resolvers = {
    first_character: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    ]
    for first_character, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""[-+]?(?:\d+(?:_\d+)*(?:\.[\d_]*)?[eE][-+]?\d+
        |\d+(?:_\d+)*\.[\d_]*
        |\.\d+(?:_\d+)*(?:[eE][-+]\d+)?
        |\.(?:inf|Inf|INF))$
        |\.(?:nan|NaN|NAN)$""",
        re.ASCII | re.VERBOSE,
    ),
    list("-+0123456789."),
)


def read_yaml_file(path: Path) -> Any:
    """Return the plain values in a YAML file: nested mappings and lists. Nothing is interpolated.

    Raises CheckpointError if `path` is not a regular file, exceeds `MAX_BYTES` or `MAX_DEPTH`, is not YAML, or
    contains tags, anchors, aliases or repeated keys.
    """
    try:
        return _parse_yaml(_read_text(path))
    except OSError as error:
        reason = f"not readable ({error.strerror})"
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        reason = f"not plain YAML ({line}{error.problem})"
    except (yaml.YAMLError, ValueError) as error:  # also bytes that are not UTF-8
        reason = f"not plain YAML ({str(error).splitlines()[0]})"
    raise CheckpointError(f"{format_path(path)}: {reason}. Restore the file.")


def read_run_config(run_dir: Path) -> dict[str, Any]:
    """Return the content of a run's config.yaml as nested plain values.

    Raises CheckpointError if `run_dir` is not a run directory, or its file is not accepted by `read_yaml_file` and
    `check_run_config`.
    """
    path = run_dir / CONFIG_FILE
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{format_path(run_dir)}: not a run directory (no {CONFIG_FILE}). Use the directory of a run."
        )
    values = read_yaml_file(path)
    try:
        if not isinstance(values, dict) or not values:
            raise ConfigError("not the configuration of a run.")
        check_run_config(values)
    except ConfigError as error:
        raise CheckpointError(
            f"{format_path(path)}: {error} Use the directory of a run that genexp wrote."
        ) from None
    return values


def read_hydra_config(run_dir: Path) -> dict[str, Any]:
    """Return the configuration that Hydra wrote for a run that failed before it wrote config.yaml.

    A value that is a reference to another one, `${key}` or `${oc.select:key,default}`, is replaced by that value.
    Other interpolations stay text. Raises CheckpointError where `read_yaml_file` does.
    """
    values = read_yaml_file(run_dir / HYDRA_DIR / CONFIG_FILE)
    values = {key: values[key] for key in CONFIG_KEYS if key in values} if isinstance(values, dict) else {}
    return {key: _replace_references(value, values) for key, value in values.items()}


def check_run_config(values: Mapping[str, Any]) -> None:
    """Raise ConfigError where plain values cannot be the configuration of a run.

    Allowed are the keys of a run, without keys that Hydra would interpret and without interpolations.
    """
    for key, value in values.items():
        if key not in CONFIG_KEYS:
            raise ConfigError(f"unknown key {key}.")
        if key in CONFIG_GROUPS and not isinstance(value, Mapping):
            raise ConfigError(f"{key} is not a mapping.")
    for path, _ in iter_nodes(values):
        if any(SPECIAL_KEY_PATTERN.fullmatch(name) for name in path):
            raise ConfigError(f"{'.'.join(path)} has a special meaning in Hydra.")
    check_no_interpolations(values)


def check_no_interpolations(values: Mapping[str, Any]) -> None:
    """Raise ConfigError where a key or value contains `${`, which OmegaConf would interpret."""
    for path, value in iter_nodes(values):
        key = ".".join(path)
        if "${" in key or (isinstance(value, str) and "${" in value):
            raise ConfigError(f"{key} contains an interpolation, ${{...}}.")


def iter_nodes(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path of keys, value) for each value in nested mappings and lists, outer values first.

    A list has the path of its key, and so do its items.
    """
    for name, value in node.items() if isinstance(node, Mapping) else ((None, item) for item in node):
        value_path = path if name is None else (*path, str(name))
        yield value_path, value
        if isinstance(value, Mapping | list | tuple):
            yield from iter_nodes(value, value_path)


def _replace_references(value: Any, values: Mapping[str, Any]) -> Any:
    """Return nested values, in which references to scalars and lists in `values` are replaced."""
    if isinstance(value, dict):
        return {key: _replace_references(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_references(item, values) for item in value]
    for _ in range(MAX_REFERENCES):
        match = _REFERENCE_PATTERN.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            break
        target: Any = values
        for name in match[1].split("."):
            if isinstance(target, list) and name.isdecimal():
                target = dict(enumerate(target)).get(int(name))
            else:
                target = target.get(name) if isinstance(target, Mapping) else None
        value = _parse_default(match[2]) if target is None else target
    return None if isinstance(value, Mapping) else value


def _parse_default(text: str | None) -> Any:
    """Return the default of a reference, parsed as a YAML scalar. Other defaults stay strings."""
    try:
        value = None if text is None else _parse_yaml(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, Mapping | list) else value


def _parse_yaml(text: str) -> Any:
    """Return the plain values of a YAML document. Raises YAMLError, ValueError."""
    _check_structure(text)
    return yaml.load(text, _PlainLoader)


def _check_structure(text: str) -> None:
    """Raise YAMLError where a document has tags, anchors or aliases, or is nested too deeply.

    The events come from a parser without recursion. Later steps of PyYAML recurse.
    """
    depth = 0
    for event in yaml.parse(text, _PlainLoader):
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "an anchor or alias"
        elif getattr(event, "tag", None) is not None:
            problem = "a tag"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            problem = f"more than {MAX_DEPTH} levels" if depth > MAX_DEPTH else None
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


def _read_text(path: Path) -> str:
    """Return the text of a file of at most MAX_BYTES. Raises OSError, ValueError."""
    with open_regular_file(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    return content.decode()
