"""Recorders: each receives snapshots of a run and writes one kind of file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from genexp.registry import Registry

RecorderT = TypeVar("RecorderT", bound=Callable[..., Any])

# Subclasses of genexp.recorders.recorder.Recorder that a run uses only if its configuration names them.
RECORDERS: Registry[Any] = Registry(
    "recorder", key="recorders", group="genexp.recorders", source="genexp.recorders.optional"
)
# Recorders that a run uses unless its configuration switches them off.
DEFAULT_RECORDERS = ("previews", "figures", "tensorboard", "report", "console")
# Recorders that a configuration cannot switch off.
PERMANENT_RECORDERS = ("metrics", "status", "checkpoints")


def register_recorder(name: str) -> Callable[[RecorderT], RecorderT]:
    """Return a class decorator that registers a recorder for the key `recorders`. Raises PluginError."""
    RECORDERS.check_name(name)

    def register(recorder: RecorderT) -> RecorderT:
        RECORDERS.register(name, recorder)
        return recorder

    return register


# Default recorder → option → type of its value. Recorders without options are omitted.
DEFAULT_OPTIONS: dict[str, dict[str, type]] = {"tensorboard": {"histograms": bool}}


def get_options(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the keyword parameters of the default recorder `name`. `settings` is the key `recorders`."""
    options = settings.get(name)
    return dict(options) if isinstance(options, Mapping) else {}


def is_enabled(settings: Mapping[str, Any], name: str) -> bool:
    """Return whether a run uses the default recorder `name`. `settings` is the key `recorders`."""
    return settings.get(name, True) not in (False, None)


def build_named_recorders(settings: Mapping[str, Any]) -> list[Any]:
    """Return the recorders that a run uses only because the key `recorders` names them."""
    named = {name: value for name, value in settings.items() if name not in DEFAULT_RECORDERS and value}
    return [RECORDERS.find(name)(**(value if isinstance(value, Mapping) else {})) for name, value in named.items()]
