"""What a configuration would hold had the user chosen the model and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from genexp.config import find_config_dir
from genexp.run_dir.record import flatten_config

GROUPS = ("dataset", "optimizer", "device")  # beside the model, which may choose among them
GLOBAL = "# @package _global_"  # Hydra's word for a file that says what the top holds


def default_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key → default, for the choices of groups in `config`.

    A choice that conf/ does not hold (from a --config-dir, or of another version) leaves its keys out. Read from
    the files rather than composed by Hydra, which is slow and has one state a process.
    """
    names = {group: str(config.get(group, {}).get("name", "")) for group in ("model", *GROUPS)}
    found = dict(_defaults(*names.values()))
    return {key: value for key, value in found.items() if key != "model.name"}


@cache
def _defaults(model: str, *names: str) -> tuple[tuple[str, Any], ...]:
    from omegaconf import OmegaConf  # takes a while to import
    from omegaconf.errors import OmegaConfBaseException

    conf = find_config_dir()
    top = OmegaConf.load(conf / "train.yaml")
    chosen = _choices(top) | _choices(_choice(conf, "model", model))
    layers = [_choice(conf, group, name) for group, name in zip(GROUPS, names, strict=True)]
    layers += [_choice(conf, "trainer", chosen.get("trainer", "")), _choice(conf, "model", model), top]
    for layer in layers:
        layer.pop("defaults", None)
        layer.pop("hydra", None)
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*layers), resolve=True)
    except OmegaConfBaseException:
        return ()  # an interpolation of an unknown choice
    assert isinstance(merged, dict)
    for group in GROUPS:
        if group in merged and group in chosen:
            merged[group]["name"] = chosen[group]
    return tuple(flatten_config({str(key): value for key, value in merged.items()}))


def _choice(conf: Path, group: str, name: str) -> Any:
    """Return the file of a choice as a piece of the whole configuration."""
    from omegaconf import OmegaConf

    path = conf / group / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        return OmegaConf.create({})
    content = OmegaConf.load(path)
    is_global = path.read_text(encoding="utf-8").startswith(GLOBAL)
    return content if is_global else OmegaConf.create({group: content})


def _choices(content: Any) -> dict[str, str]:
    """Return group → choice, as a defaults list has it."""
    listed = [entry for entry in content.get("defaults", []) if not isinstance(entry, str)]
    pairs = [
        (str(key).removeprefix("override ").removeprefix("/"), value)
        for entry in listed
        for key, value in entry.items()
    ]
    return {group: str(name) for group, name in pairs if group in (*GROUPS, "trainer")}
