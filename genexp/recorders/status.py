"""Recorder of `status.json`, a summary of the run that is replaced atomically."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from genexp.recorders.recorder import Recorder
from genexp.run_dir.files import write_json
from genexp.run_dir.paths import STATUS_FILE
from genexp.snapshot import RunInfo, RunOutcome, Snapshot


@final
class StatusRecorder(Recorder):
    """Recorder of `status.json`.

    The file is written at the start, at most every `interval_seconds` seconds during the run, and at the end.
    """

    def __init__(self, interval_seconds: float = 1.0) -> None:
        self._interval_seconds = interval_seconds

    def open(self, run: RunInfo) -> None:
        """Write the initial status. A resumed run keeps its metrics, best value, warnings and run time."""
        self._path = run.run_dir / STATUS_FILE
        self._objective, self._pick_better = run.objective, {"min": min, "max": max}[run.direction]
        previous = _read_json(self._path) if run.completed_steps else {}
        best = previous.get("best")
        self._open_time, self._open_cpu_time = time.monotonic(), time.process_time()
        self._previous_seconds = previous.get("seconds", 0.0)
        self._previous_cpu_seconds = previous.get("cpu_seconds", 0.0)
        self._status: dict[str, Any] = {
            "state": "running",
            "model": run.model_name,
            "dataset": run.dataset_name,
            "step": run.completed_steps,
            "total_steps": run.total_steps,
            "epoch": -(-run.completed_steps // run.steps_per_epoch),
            "train": {},
            "test": previous.get("test", {}),
            "objective": run.objective,
            "best": best if best and best["step"] <= run.completed_steps else None,
            "warnings": previous.get("warnings", []),
            "error": None,
            "started": previous.get("started") or _format_utc_now(),
            "updated": _format_utc_now(),
            "seconds": self._previous_seconds,
            "cpu_seconds": self._previous_cpu_seconds,  # of all threads of this process
            "environment": dict(run.environment),
            "data": dict(run.data_fingerprints),
        }
        self._write()

    def record(self, snapshot: Snapshot) -> None:
        """Update the status. Write it if `interval_seconds` seconds have passed since the last write."""
        status, clock = self._status, snapshot.clock
        status.update(step=clock.step, epoch=clock.epoch)
        status["train"] |= {name: float(curve.values[-1]) for name, curve in snapshot.train_curves.items()}
        status["test"] = dict(snapshot.test_metrics) or status["test"]
        status["warnings"] += [text for text in dict.fromkeys(snapshot.warnings) if text not in status["warnings"]]
        self._update_best(snapshot)
        if time.monotonic() - self._last_write_time >= self._interval_seconds:
            self._write()

    def close(self, outcome: RunOutcome) -> None:
        """Write the final state, step and error."""
        self._status.update(state=outcome.state, step=outcome.step, error=outcome.error)
        self._write()

    def _update_best(self, snapshot: Snapshot) -> None:
        value = snapshot.test_metrics.get(self._objective, math.nan)
        best = self._status["best"]
        if math.isfinite(value) and (best is None or self._pick_better(value, best["value"]) != best["value"]):
            self._status["best"] = {"value": value, "step": snapshot.clock.step}

    def _write(self) -> None:
        self._last_write_time = time.monotonic()
        self._status["updated"] = _format_utc_now()
        # Excludes the time between an interruption and the resumption.
        self._status["seconds"] = round(self._previous_seconds + self._last_write_time - self._open_time, 3)
        cpu_seconds = self._previous_cpu_seconds + time.process_time() - self._open_cpu_time
        self._status["cpu_seconds"] = round(cpu_seconds, 3)
        write_json(self._path, _replace_non_finite(self._status))


def _format_utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the previous status; empty if the file is absent or damaged, since a run can do without it."""
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _replace_non_finite(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return `status` with None for each NaN or infinity, which JSON cannot represent."""
    return {
        key: _replace_non_finite(value) if isinstance(value, Mapping) else _replace_if_non_finite(value)
        for key, value in status.items()
    }


def _replace_if_non_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
