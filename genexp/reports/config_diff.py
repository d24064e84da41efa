"""Configuration differences between runs, and between a run and the defaults."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from genexp.config import find_config_dir
from genexp.run_dir.record import RunRecord, flatten_config

OVERRIDABLE_GROUPS = ("dataset", "optimizer", "device")  # groups whose option a model's YAML may override
GLOBAL_PACKAGE_HEADER = "# @package _global_"  # Hydra directive: the file's keys belong to the root
# Keys that do not define the experiment: annotations, how the run was started, and defaults read by other keys.
IGNORED_KEY_PREFIXES = ("resume", "sweep.", "tags", "notes", "model.recipe.")
GROUP_CHOICE_KEYS = ("model.name", "dataset.name", "optimizer.name", "device.name")
GROUP_ORDER = ("model", "dataset", "optimizer", "trainer", "device")  # order of display; other groups follow


def load_default_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key → default value, for the config group options selected in `config`.

    Keys of an option that is missing in conf/ are omitted. Such an option comes from a --config-dir or from
    another version. The YAML files are merged here because Hydra's composition is slow and its state is global to
    the process.
    """
    choices = {group: str(config.get(group, {}).get("name", "")) for group in ("model", *OVERRIDABLE_GROUPS)}
    defaults = dict(_compose_defaults(*choices.values()))
    return {key: value for key, value in defaults.items() if key != "model.name"}


@cache
def _compose_defaults(model: str, *names: str) -> tuple[tuple[str, Any], ...]:
    from omegaconf import OmegaConf  # takes a while to import
    from omegaconf.errors import OmegaConfBaseException

    config_dir = find_config_dir()
    primary_config = OmegaConf.load(config_dir / "train.yaml")
    defaults_list = _parse_defaults_list(primary_config) | _parse_defaults_list(
        _load_group_option(config_dir, "model", model)
    )
    configs = [
        _load_group_option(config_dir, group, name) for group, name in zip(OVERRIDABLE_GROUPS, names, strict=True)
    ]
    configs += [
        _load_group_option(config_dir, "trainer", defaults_list.get("trainer", "")),
        _load_group_option(config_dir, "model", model),
        primary_config,
    ]
    for config in configs:
        config.pop("defaults", None)
        config.pop("hydra", None)
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*configs), resolve=True)
    except OmegaConfBaseException:
        return ()  # an interpolation refers to a key of an unknown option
    assert isinstance(merged, dict)
    for group in OVERRIDABLE_GROUPS:
        if group in merged and group in defaults_list:
            merged[group]["name"] = defaults_list[group]
    return tuple(flatten_config({str(key): value for key, value in merged.items()}))


def _load_group_option(config_dir: Path, group: str, name: str) -> Any:
    """Return the YAML content of a config group option, nested under `group` unless its package is global.

    The result is empty if conf/ has no such file.
    """
    from omegaconf import OmegaConf

    path = config_dir / group / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        return OmegaConf.create({})
    content = OmegaConf.load(path)
    is_global = path.read_text(encoding="utf-8").startswith(GLOBAL_PACKAGE_HEADER)
    return content if is_global else OmegaConf.create({group: content})


def _parse_defaults_list(content: Any) -> dict[str, str]:
    """Return group → option of the defaults list in `content`, for `OVERRIDABLE_GROUPS` and the trainer."""
    group_entries = [entry for entry in content.get("defaults", []) if not isinstance(entry, str)]
    pairs = [
        (str(key).removeprefix("override ").removeprefix("/"), value)
        for entry in group_entries
        for key, value in entry.items()
    ]
    return {group: str(name) for group, name in pairs if group in (*OVERRIDABLE_GROUPS, "trainer")}


def get_settings(run: RunRecord) -> dict[str, Any]:
    """Return dotted key → value of all settings that define the experiment, including the seed."""
    order = {group: index for index, group in enumerate(GROUP_ORDER)}
    items = [(key, value) for key, value in flatten_config(run.config) if not key.startswith(IGNORED_KEY_PREFIXES)]
    return dict(sorted(items, key=lambda item: order.get(item[0].partition(".")[0], len(GROUP_ORDER))))


def get_seed_group_key(run: RunRecord) -> Hashable:
    """Return a hashable key that is equal for runs that differ only in their seed."""
    return tuple(sorted((key, format_setting(value)) for key, value in get_settings(run).items() if key != "seed"))


def find_differing_keys(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return the dotted keys whose values differ between runs, without the seed.

    A key whose value is determined by the selected config group options is omitted: with another model, all keys
    of the model differ. It is kept if a run overrides its default. The key of a phase of the optimizer, such as
    optimizer.generator.lr, is omitted if it equals that of all phases (optimizer.lr) in each run.
    """
    settings_list = [get_settings(run) for run in runs if run.config]
    keys = dict.fromkeys(key for settings in settings_list for key in settings if key != "seed")
    differing_keys = [key for key in keys if _is_varying(settings_list, key)]
    settings_by_choices: dict[Hashable, list[dict[str, Any]]] = {}
    for settings in settings_list:
        settings_by_choices.setdefault(tuple(map(settings.get, GROUP_CHOICE_KEYS)), []).append(settings)
    implied_keys = [
        key
        for key in differing_keys
        if key not in GROUP_CHOICE_KEYS
        and not any(_is_varying(same_choices, key) for same_choices in settings_by_choices.values())
    ]
    if implied_keys:
        overridden_keys = {key for run in runs if run.config for key in find_overridden_defaults(run)}
        implied_keys = [key for key in implied_keys if key not in overridden_keys]
    return tuple(
        key
        for key in differing_keys
        if key not in implied_keys and not all(_repeats_group_value(settings, key) for settings in settings_list)
    )


def _repeats_group_value(settings: Mapping[str, Any], key: str) -> bool:
    """Return True if `key` belongs to a phase of the optimizer, and is unset or equal to the key of all phases."""
    group, _, name = key.rpartition(".")
    return group.startswith("optimizer.") and settings.get(key) in (None, settings.get(f"optimizer.{name}"))


def find_overridden_defaults(run: RunRecord) -> dict[str, Any]:
    """Return dotted key → default value, for the settings of `run` that differ from their default."""
    defaults = load_default_settings(run.config)
    settings = get_settings(run)
    return {
        key: defaults[key]
        for key in settings
        if key in defaults and format_setting(settings[key]) != format_setting(defaults[key])
    }


def format_setting(value: Any) -> str:
    """Return `value` as written in YAML, with floats rounded to 12 significant digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return f"[{', '.join(map(format_setting, value))}]"
    return str(value)


def format_setting_short(value: Any) -> str:
    """Return `value` for display: a float with six significant digits, else as in YAML."""
    return f"{value:.6g}" if isinstance(value, float) else format_setting(value)


def build_column_labels(keys: Iterable[str]) -> dict[str, str]:
    """Return dotted key → column label. The label of a group's option ("model.name") is the group ("model")."""
    return {key: key.removesuffix(".name") if key in GROUP_CHOICE_KEYS else key for key in keys}


def describe_settings(run: RunRecord, keys: Iterable[str]) -> str:
    """Return the values of `keys` in `run` as text, such as "optimizer.lr=0.001 model=vae"."""
    settings = get_settings(run)
    names = build_column_labels(keys)
    return " ".join(
        f"{name}={format_setting_short(settings[key])}" for key, name in names.items() if key in settings
    )


def _is_varying(settings_list: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({format_setting(settings.get(key)) for settings in settings_list}) > 1
