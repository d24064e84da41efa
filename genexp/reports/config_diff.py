"""Which settings tell runs apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from genexp.reports.default_config import default_settings
from genexp.run_dir.record import RunRecord, flatten_config

# Words for the user, where a run began, and defaults that other keys read: they make no other experiment.
IRRELEVANT = ("resume", "sweep.", "tags", "notes", "model.recipe.")
CHOICES = ("model.name", "dataset.name", "optimizer.name", "device.name")
ORDER = ("model", "dataset", "optimizer", "trainer", "device")


def settings(run: RunRecord) -> dict[str, Any]:
    """Return dotted key → value of what makes the run the experiment that it is, its seed included."""
    order = {group: place for place, group in enumerate(ORDER)}
    found = [(key, value) for key, value in flatten_config(run.config) if not key.startswith(IRRELEVANT)]
    return dict(sorted(found, key=lambda item: order.get(item[0].partition(".")[0], len(ORDER))))


def experiment(run: RunRecord) -> Hashable:
    """Return what the runs of one experiment, with another seed each, have in common."""
    return tuple(sorted((key, shown(value)) for key, value in settings(run).items() if key != "seed"))


def differing(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return the keys that differ between runs, the seed left out.

    A key that follows from a choice is not named beside it: of another model every key is another one.
    """
    all_settings = {run.run_dir: settings(run) for run in runs if run.config}
    values = list(all_settings.values())
    keys = dict.fromkeys(key for each in values for key in each if key != "seed")
    apart = [key for key in keys if _vary(values, key)]
    blocks: dict[Hashable, list[dict[str, Any]]] = {}
    for each in values:
        blocks.setdefault(tuple(each.get(choice) for choice in CHOICES), []).append(each)
    follows = [
        key for key in apart if key not in CHOICES and not any(_vary(block, key) for block in blocks.values())
    ]
    if follows:
        chosen = {key for run in runs if run.config for key in changed(run)}
        follows = [key for key in follows if key not in chosen]
    return tuple(key for key in apart if key not in follows)


def changed(run: RunRecord) -> dict[str, Any]:
    """Return the settings of a run that differ from the defaults of its choices → the default."""
    defaults = default_settings(run.config)
    mine = settings(run)
    return {key: defaults[key] for key in mine if key in defaults and shown(mine[key]) != shown(defaults[key])}


def shown(value: Any) -> str:
    """Return a setting as it is written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def brief(value: Any) -> str:
    """Return a setting for the eye: of a number that a search has drawn, six digits."""
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return key → a name for the head of a column: the choice of a group goes by the group's."""
    return {key: key.removesuffix(".name") if key in CHOICES else key for key in keys}


def described(run: RunRecord, keys: Iterable[str]) -> str:
    """Return the run's values of keys: "optimizer.lr=0.001 model=vae"."""
    mine = settings(run)
    names = short_names(keys)
    return " ".join(f"{name}={brief(mine[key])}" for key, name in names.items() if key in mine)


def _vary(values: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({shown(each.get(key)) for each in values}) > 1
