"""Going on with a run: what may change, from which state, and that nobody else is at it."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genexp.errors import ConfigError, RunDirInUseError
from genexp.recorders.checkpoints import truncate_logs
from genexp.run_dir import checkpoint

log = logging.getLogger(__name__)
RESUMABLE_CHANGES = {
    *("resume", "tags", "notes", "trainer.epochs", "trainer.max_steps", "trainer.time_budget"),
    "device.processes",
}


def state_to_resume(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """Return the newest usable state of the run in `folder`; None where it starts anew. Raises GenexpError."""
    if cfg.resume is None:
        _refuse_if_taken(folder)
        return None
    _refuse_changes(cfg, folder)
    state, warnings = checkpoint.load_newest(folder)
    for warning in warnings:
        log.warning(warning)
    if state["step"] == 0:  # nothing was learnt yet: the same run from its beginning
        truncate_logs(folder, {})
        return None
    return state


def refuse_if_finished(folder: Path) -> None:
    """Raise ConfigError for a run that has nothing left to do."""
    try:
        state = json.loads((folder / "status.json").read_text())["state"]
    except (OSError, ValueError, KeyError):
        return  # killed before it could say so
    if state == "finished":
        raise ConfigError(f"resume={folder} has finished; set a larger trainer.epochs to go on with it")


def _refuse_if_taken(folder: Path) -> None:
    """Raise ConfigError where a fresh run would write over another one, or be mistaken for it when resumed."""
    metrics = folder / "metrics.jsonl"
    if checkpoint.list_checkpoints(folder) or (metrics.exists() and metrics.stat().st_size):
        raise ConfigError(f"{folder} holds a run already; go on with resume={folder}, or choose another folder")


def _refuse_changes(cfg: DictConfig, folder: Path) -> None:
    """Raise ConfigError where a key differs that would make it another run."""
    stored = dict(flatten(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)))
    given = dict(flatten(OmegaConf.to_container(cfg, resolve=True)))
    changed = [
        f"{key}={given.get(key)} (was {stored.get(key)})"
        for key in sorted(stored.keys() | given.keys())
        if stored.get(key) != given.get(key) and key not in RESUMABLE_CHANGES
    ]
    if changed:
        raise ConfigError(
            f"resume={cfg.resume} cannot change {', '.join(changed)}; leave these out, or start a new run"
        )


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested dicts."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder while the block runs; a killed process holds nothing.

    Raises FolderInUseError.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirInUseError(f"{folder} is in use by another process; wait for it, or stop it") from None
        yield
