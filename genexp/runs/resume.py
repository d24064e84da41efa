"""Resumption of a run: checks of its configuration, and its newest state."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genexp.errors import CheckpointError, ConfigError
from genexp.recorders import is_enabled
from genexp.registry import get_plugins
from genexp.run_dir import checkpoint
from genexp.run_dir.config_file import read_run_config
from genexp.run_dir.environment import check_plugins
from genexp.run_dir.paths import CURVES_FIGURE, FIGURES_DIR, METRICS_FILE, REPORT_FILE
from genexp.run_dir.record import flatten_config
from genexp.snapshot import RunProgress

log = logging.getLogger(__name__)
KEYS_CHANGEABLE_ON_RESUME = {  # keys that may differ when a run is resumed
    *("resume", "tags", "notes", "trainer.epochs", "trainer.max_steps", "trainer.time_budget"),
    *("trainer.early_stopping", "trainer.min_improvement"),
    *("trainer.final_checkpoint", "device.processes"),
}


def load_resume_state(values: Mapping[str, Any], run_dir: Path) -> dict[str, Any] | None:
    """Return the newest valid checkpoint of the run in `run_dir`. Raises GenexpError.

    `values` is the plain, resolved configuration. Returns None for a new run, and for a run that was killed before
    its first step. This function changes no file in `run_dir`.
    """
    if values["resume"] is None:
        _check_no_existing_run(run_dir)
        return None
    for warning in check_plugins(run_dir, get_plugins()):
        log.warning(warning)
    _check_config_unchanged(values, run_dir)
    if not checkpoint.list_checkpoints(run_dir) and not _has_metrics(run_dir):
        return None
    state, warnings = checkpoint.load_newest_checkpoint(run_dir)
    for warning in warnings:
        log.warning(warning)
    return state if state["step"] else None  # at step 0, the run starts again


def load_progress(state: Mapping[str, Any]) -> RunProgress:
    """Return the scores, epoch means and warnings in a checkpoint. Raises CheckpointError if they are damaged."""
    values = state.get("progress", {})
    try:
        return RunProgress(
            test_metrics={str(name): float(value) for name, value in values.get("test_metrics", {}).items()},
            best_value=values.get("best_value"),
            best_step=values.get("best_step"),
            reference_value=values.get("reference_value"),
            reference_step=values.get("reference_step"),
            plateau_reductions={str(k): int(v) for k, v in values.get("plateau_reductions", {}).items()},
            plateau_steps={str(k): int(v) for k, v in values.get("plateau_steps", {}).items()},
            train_sums={str(name): float(value) for name, value in values.get("train_sums", {}).items()},
            train_counts={str(name): int(value) for name, value in values.get("train_counts", {}).items()},
            warnings=tuple(map(str, values.get("warnings", ()))),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint of step {state['step']}: damaged scores ({error}). Delete it to use the previous one."
        ) from None


def check_lacks_pages(run_dir: Path, recorders: Mapping[str, Any]) -> None:
    """Raise ConfigError if a finished run has the report and figures that its `recorders` enable."""
    paths = {"report": run_dir / REPORT_FILE, "figures": run_dir / FIGURES_DIR / CURVES_FIGURE}
    pages = [path for name, path in paths.items() if is_enabled(recorders, name)]
    if all(path.is_file() and path.stat().st_size for path in pages):
        raise ConfigError(f"resume={run_dir}: already finished. Use a larger trainer.epochs to continue it.")


def _check_no_existing_run(run_dir: Path) -> None:
    """Raise ConfigError where `run_dir` contains the checkpoints or metrics of another run."""
    if checkpoint.list_checkpoints(run_dir) or _has_metrics(run_dir):
        raise ConfigError(f"{run_dir}: already contains a run. Use resume={run_dir}, or another directory.")


def _has_metrics(run_dir: Path) -> bool:
    metrics = run_dir / METRICS_FILE
    return metrics.exists() and metrics.stat().st_size > 0


def _check_config_unchanged(values: Mapping[str, Any], run_dir: Path) -> None:
    """Raise ConfigError where a key outside KEYS_CHANGEABLE_ON_RESUME differs from the stored configuration."""
    stored_config = dict(flatten_config(read_run_config(run_dir)))
    new_config = dict(flatten_config(values))
    changes = [
        f"{key}={new_config.get(key)} (was {stored_config.get(key)})"
        for key in sorted(stored_config.keys() | new_config.keys())
        if stored_config.get(key) != new_config.get(key)
        and key not in KEYS_CHANGEABLE_ON_RESUME
        and key.partition(".")[0] != "recorders"
    ]
    if changes:
        raise ConfigError(
            f"resume={values['resume']}: cannot change {', '.join(changes)}. "
            f"Remove these overrides, or start a new run."
        )
