"""Which settings tell runs apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from genexp.reports.default_config import load_default_settings
from genexp.run_dir.record import RunRecord, flatten_config

# Words for the user, where a run began, and defaults that other keys read: they make no other experiment.
IGNORED_KEY_PREFIXES = ("resume", "sweep.", "tags", "notes", "model.recipe.")
GROUP_CHOICE_KEYS = ("model.name", "dataset.name", "optimizer.name", "device.name")
GROUP_ORDER = ("model", "dataset", "optimizer", "trainer", "device")


def get_settings(run: RunRecord) -> dict[str, Any]:
    """Return dotted key → value of what makes the run the experiment that it is, its seed included."""
    order = {group: index for index, group in enumerate(GROUP_ORDER)}
    items = [(key, value) for key, value in flatten_config(run.config) if not key.startswith(IGNORED_KEY_PREFIXES)]
    return dict(sorted(items, key=lambda item: order.get(item[0].partition(".")[0], len(GROUP_ORDER))))


def get_experiment_key(run: RunRecord) -> Hashable:
    """Return what the runs of one experiment, with another seed each, have in common."""
    return tuple(sorted((key, format_setting(value)) for key, value in get_settings(run).items() if key != "seed"))


def find_differing_keys(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return the keys that differ between runs, the seed left out.

    A key that follows from a choice is not named beside it: of another model every key is another one.
    """
    all_settings = {run.run_dir: get_settings(run) for run in runs if run.config}
    settings_list = list(all_settings.values())
    keys = dict.fromkeys(key for settings in settings_list for key in settings if key != "seed")
    differing_keys = [key for key in keys if _is_varying(settings_list, key)]
    by_choices: dict[Hashable, list[dict[str, Any]]] = {}
    for each in settings_list:
        by_choices.setdefault(tuple(each.get(choice) for choice in GROUP_CHOICE_KEYS), []).append(each)
    implied_keys = [
        key
        for key in differing_keys
        if key not in GROUP_CHOICE_KEYS
        and not any(_is_varying(same_choices, key) for same_choices in by_choices.values())
    ]
    if implied_keys:
        overridden_keys = {key for run in runs if run.config for key in find_overridden_defaults(run)}
        implied_keys = [key for key in implied_keys if key not in overridden_keys]
    return tuple(key for key in differing_keys if key not in implied_keys)


def find_overridden_defaults(run: RunRecord) -> dict[str, Any]:
    """Return the settings of a run that differ from the defaults of its choices → the default."""
    defaults = load_default_settings(run.config)
    settings = get_settings(run)
    return {
        key: defaults[key]
        for key in settings
        if key in defaults and format_setting(settings[key]) != format_setting(defaults[key])
    }


def format_setting(value: Any) -> str:
    """Return a setting as it is written in YAML."""
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
    """Return a setting for the eye: of a number that a search has drawn, six digits."""
    return f"{value:.6g}" if isinstance(value, float) else format_setting(value)


def shorten_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return key → a name for the head of a column: the choice of a group goes by the group's."""
    return {key: key.removesuffix(".name") if key in GROUP_CHOICE_KEYS else key for key in keys}


def describe_settings(run: RunRecord, keys: Iterable[str]) -> str:
    """Return the run's values of keys: "optimizer.lr=0.001 model=vae"."""
    settings = get_settings(run)
    names = shorten_keys(keys)
    return " ".join(
        f"{name}={format_setting_short(settings[key])}" for key, name in names.items() if key in settings
    )


def _is_varying(settings_list: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({format_setting(settings.get(key)) for settings in settings_list}) > 1
