"""Plugins on the command line: the option `--plugin`, and the configuration nodes of what plugins register."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from genexp.errors import PluginError
from genexp.registry import (
    get_plugins,
    list_entry_points,
    list_plugin_names,
    load_plugins,
    read_plugin_variable,
    set_plugins,
)

PLUGIN_OPTION = "--plugin"
GROUPS = {"model": "genexp.techniques", "dataset": "genexp.datasets"}  # config group → group of entry points
COMMON_DATASET_VALUES = {"limit": None, "resident_gb": 4.0}
COMPLETED_LINE = "COMP_LINE"  # environment variable with the command line that the shell completes
_OPTION_PATTERN = re.compile(rf"{PLUGIN_OPTION}[=\s]\s*\S+\s?")


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--plugin`, which can be given several times."""
    parser.add_argument(
        PLUGIN_OPTION,
        action="append",
        default=[],
        metavar="FILE",
        help="Python file or module with techniques, losses, data sets and others; also from $GENEXP_PLUGINS",
    )


def use_plugins(sources: Sequence[str]) -> None:
    """Use the plugins in `$GENEXP_PLUGINS` and `sources`, and no others. None is imported. Raises PluginError."""
    set_plugins([*read_plugin_variable(), *sources])


def parse_plugins(arguments: Sequence[str]) -> list[str]:
    """Return the values of `--plugin` in a command line with other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_plugin_option(parser)
    plugins: list[str] = parser.parse_known_args(arguments)[0].plugin
    return plugins


def use_plugins_of_completed_line() -> None:
    """Use the plugins of the line that the shell completes, and hide the option, which Hydra does not know."""
    line = os.environ.get(COMPLETED_LINE, "")
    try:
        use_plugins(parse_plugins(shlex.split(line)))
    except (PluginError, ValueError):  # an incomplete line
        return
    os.environ[COMPLETED_LINE] = _OPTION_PATTERN.sub("", line)


def store_configs(overrides: Sequence[str], config_dirs: Iterable[Path], *, should_import: bool) -> None:
    """Add a node to Hydra's ConfigStore for each technique and data set of plugins and installed packages.

    With `should_import`, the nodes have the default values, for which all plugins are imported, and installed
    packages whose members `overrides` name. Other nodes have only a name. A member with a YAML file in
    `config_dirs` has no node: Hydra would take it for the schema of that file. Raises PluginError.
    """
    from hydra.core.config_store import ConfigStore  # commands on finished runs do not need it

    nodes = {(group, name): {"name": name} for group in GROUPS for name in list_plugin_names(GROUPS[group])}
    if should_import:
        load_plugins()
        is_preset = any(override.startswith("experiment=") for override in overrides)  # which may name any member
        entries = [entry for entry in _iter_entry_points() if is_preset or entry.name in " ".join(overrides)]
        has_techniques = "genexp.technique" in sys.modules  # a notebook may have registered some
        if get_plugins() or entries or has_techniques:
            nodes.update(_build_nodes(entries))
    directories, store = [*config_dirs, *list_package_config_dirs()], ConfigStore.instance()
    for group in GROUPS:
        stored = store.repo.get(group, {})
        for name in [name for name, node in stored.items() if getattr(node, "provider", None) == PLUGIN_OPTION]:
            del stored[name]
    for (group, name), node in nodes.items():
        if not any((directory / group / f"{name}.yaml").is_file() for directory in directories):
            store.store(group=group, name=name, node=node, provider=PLUGIN_OPTION)


def list_package_config_dirs() -> list[Path]:
    """Return the directory `conf` of each installed package with entry points, where it has one."""
    packages = dict.fromkeys(entry.module.partition(".")[0] for entry in _iter_entry_points())
    specs = [importlib.util.find_spec(package) for package in packages]
    roots = [Path(root) for spec in specs if spec for root in spec.submodule_search_locations or ()]
    return [root / "conf" for root in roots if (root / "conf").is_dir()]


def _iter_entry_points() -> Iterator[EntryPoint]:
    for group in GROUPS.values():
        yield from list_entry_points(group)


def _build_nodes(entries: Iterable[EntryPoint]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return (group, name) → default values of all members of plugins, and of `entries`."""
    from genexp.data.registry import DATASETS  # imports torch
    from genexp.technique import TECHNIQUES

    for entry in entries:
        (TECHNIQUES if entry.group == TECHNIQUES.group else DATASETS).find(entry.name)
    nodes = {}
    for name, technique in TECHNIQUES.list_external():
        recipe = {"recipe": dict(technique.recipe)} if technique.recipe else {}
        nodes["model", name] = {"name": name, **read_defaults(technique.Config), **recipe}
    for name, dataset in DATASETS.list_external():
        nodes["dataset", name] = {**read_defaults(dataset), "name": name, **COMMON_DATASET_VALUES}
    return nodes


def read_defaults(config_class: type) -> dict[str, Any]:
    """Return the default values of a dataclass as plain values. Raises PluginError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(OmegaConf.structured(config_class))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise PluginError(
            f"{config_class.__module__}.{config_class.__qualname__}: {reason}. Use plain types."
        ) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
