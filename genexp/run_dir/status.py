"""Status of a sweep job, read from its run directory without importing torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genexp.run_dir.files import write_json
from genexp.run_dir.paths import CHECKPOINTS_DIR, CONFIG_FILE, STATUS_FILE


@dataclass(frozen=True)
class RunStatus:
    """Progress of a job as read from `status.json`."""

    state: str  # waiting, running, finished, stopped or failed
    step: int = 0
    total_steps: int | None = None
    epoch: int = 0
    objective: str = ""
    objective_value: float | None = None  # latest value of the objective
    error: str = ""  # empty unless the job failed

    @property
    def fraction_done(self) -> float:
        """Fraction of the steps that are done, in [0, 1]."""
        if self.state == "finished":
            return 1.0
        return self.step / self.total_steps if self.total_steps else 0.0


def read_status(run_dir: Path, min_mtime: float = 0.0) -> RunStatus:
    """Return the status of the job in `run_dir`; state "waiting" if it has no status file.

    A status file modified before `min_mtime` (POSIX seconds) belongs to an earlier attempt. A job killed
    in that attempt would still be marked "running". Its state is "waiting" unless it is "finished".
    """
    status = _read_json(run_dir / STATUS_FILE)
    if not status:
        return RunStatus("waiting")
    objective, state = status["objective"], status["state"]
    if state != "finished" and (run_dir / STATUS_FILE).stat().st_mtime < min_mtime:
        state = "waiting"
    return RunStatus(
        state=state,
        step=status["step"],
        total_steps=status["total_steps"],
        epoch=status["epoch"],
        objective=objective,
        objective_value=status["test"].get(objective),
        error=status["error"] or "" if state == "failed" else "",
    )


def is_resumable(run_dir: Path) -> bool:
    """Return whether the run in `run_dir` has a configuration and a checkpoint to resume from."""
    return (run_dir / CONFIG_FILE).is_file() and any((run_dir / CHECKPOINTS_DIR).glob("step-*.pt"))


def record_failure(run_dir: Path, config: dict[str, Any], error: str) -> None:
    """Write "failed" and `error` to `status.json` for a job whose status recorder could not do so.

    Other fields of an existing file are kept.
    """
    status = _read_json(run_dir / STATUS_FILE)
    defaults = {
        "state": "failed",
        "model": config["model"]["name"],
        "dataset": config["dataset"]["name"],
        "step": 0,
        "total_steps": None,
        "epoch": 0,
        "train": {},
        "test": {},
        "objective": config["trainer"]["objective"].removeprefix("test/"),
        "best": None,
        "warnings": [],
        "environment": {},
    }
    write_json(run_dir / STATUS_FILE, {**defaults, **status, "state": "failed", "error": error})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
