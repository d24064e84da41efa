"""What a configuration would hold had the user chosen the model and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from genexp.config import find_config_dir
from genexp.run_dir.record import flatten_config

CONFIG_GROUPS = ("dataset", "optimizer", "device")  # beside the model, which may choose among them
GLOBAL_PACKAGE_HEADER = "# @package _global_"  # Hydra's word for a file that says what the top holds


def load_default_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key → default, for the choices of groups in `config`.

    A choice that conf/ does not hold (from a --config-dir, or of another version) leaves its keys out. Read from
    the files rather than composed by Hydra, which is slow and has one state a process.
    """
    choices = {group: str(config.get(group, {}).get("name", "")) for group in ("model", *CONFIG_GROUPS)}
    defaults = dict(_load_defaults(*choices.values()))
    return {key: value for key, value in defaults.items() if key != "model.name"}


@cache
def _load_defaults(model: str, *names: str) -> tuple[tuple[str, Any], ...]:
    from omegaconf import OmegaConf  # takes a while to import
    from omegaconf.errors import OmegaConfBaseException

    config_dir = find_config_dir()
    primary_config = OmegaConf.load(config_dir / "train.yaml")
    defaults_list = _parse_defaults_list(primary_config) | _parse_defaults_list(
        _load_group_option(config_dir, "model", model)
    )
    configs = [
        _load_group_option(config_dir, group, name) for group, name in zip(CONFIG_GROUPS, names, strict=True)
    ]
    configs += [
        _load_group_option(config_dir, "trainer", defaults_list.get("trainer", "")),
        _load_group_option(config_dir, "model", model),
        primary_config,
    ]
    for layer in configs:
        layer.pop("defaults", None)
        layer.pop("hydra", None)
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*configs), resolve=True)
    except OmegaConfBaseException:
        return ()  # an interpolation of an unknown choice
    assert isinstance(merged, dict)
    for group in CONFIG_GROUPS:
        if group in merged and group in defaults_list:
            merged[group]["name"] = defaults_list[group]
    return tuple(flatten_config({str(key): value for key, value in merged.items()}))


def _load_group_option(config_dir: Path, group: str, name: str) -> Any:
    """Return the file of a choice as a piece of the whole configuration."""
    from omegaconf import OmegaConf

    path = config_dir / group / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        return OmegaConf.create({})
    content = OmegaConf.load(path)
    is_global = path.read_text(encoding="utf-8").startswith(GLOBAL_PACKAGE_HEADER)
    return content if is_global else OmegaConf.create({group: content})


def _parse_defaults_list(content: Any) -> dict[str, str]:
    """Return group → choice, as a defaults list has it."""
    group_entries = [entry for entry in content.get("defaults", []) if not isinstance(entry, str)]
    pairs = [
        (str(key).removeprefix("override ").removeprefix("/"), value)
        for entry in group_entries
        for key, value in entry.items()
    ]
    return {group: str(name) for group, name in pairs if group in (*CONFIG_GROUPS, "trainer")}
