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
from genexp.run_dir.paths import CONFIG_FILE, LOCK_FILE, METRICS_FILE, STATUS_FILE

log = logging.getLogger(__name__)
RESUMABLE_KEYS = {
    *("resume", "tags", "notes", "trainer.epochs", "trainer.max_steps", "trainer.time_budget"),
    "device.processes",
}


def load_resume_state(cfg: DictConfig, run_dir: Path) -> dict[str, Any] | None:
    """Return the newest usable state of the run in `folder`; None where it starts anew. Raises GenexpError."""
    if cfg.resume is None:
        _check_no_existing_run(run_dir)
        return None
    _check_resumable_changes(cfg, run_dir)
    state, warnings = checkpoint.load_newest(run_dir)
    for warning in warnings:
        log.warning(warning)
    if state["step"] == 0:  # nothing was learnt yet: the same run from its beginning
        truncate_logs(run_dir, {})
        return None
    return state


def check_not_finished(run_dir: Path) -> None:
    """Raise ConfigError for a run that has nothing left to do."""
    try:
        state = json.loads((run_dir / STATUS_FILE).read_text())["state"]
    except (OSError, ValueError, KeyError):
        return  # killed before it could say so
    if state == "finished":
        raise ConfigError(f"resume={run_dir} has finished; set a larger trainer.epochs to go on with it")


def _check_no_existing_run(run_dir: Path) -> None:
    """Raise ConfigError where a fresh run would write over another one, or be mistaken for it when resumed."""
    metrics = run_dir / METRICS_FILE
    if checkpoint.list_checkpoints(run_dir) or (metrics.exists() and metrics.stat().st_size):
        raise ConfigError(f"{run_dir} holds a run already; go on with resume={run_dir}, or choose another folder")


def _check_resumable_changes(cfg: DictConfig, run_dir: Path) -> None:
    """Raise ConfigError where a key differs that would make it another run."""
    stored_config = dict(
        flatten_items(OmegaConf.to_container(OmegaConf.load(run_dir / CONFIG_FILE), resolve=True))
    )
    new_config = dict(flatten_items(OmegaConf.to_container(cfg, resolve=True)))
    changes = [
        f"{key}={new_config.get(key)} (was {stored_config.get(key)})"
        for key in sorted(stored_config.keys() | new_config.keys())
        if stored_config.get(key) != new_config.get(key) and key not in RESUMABLE_KEYS
    ]
    if changes:
        raise ConfigError(
            f"resume={cfg.resume} cannot change {', '.join(changes)}; leave these out, or start a new run"
        )


def flatten_items(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested dicts."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Keep a second process out of the folder while the block runs; a killed process holds nothing.

    Raises FolderInUseError.
    """
    with (run_dir / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirInUseError(f"{run_dir} is in use by another process; wait for it, or stop it") from None
        yield
