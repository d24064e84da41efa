"""Where a run stands, in one small file that is always whole."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from genexp.recorders.recorder import Recorder
from genexp.run_dir.paths import STATUS_FILE
from genexp.snapshot import RunInfo, RunOutcome, Snapshot


@final
class StatusFile(Recorder):
    """Writes `status.json`, at most once every `interval` seconds while the run goes on, and when it ends."""

    def __init__(self, interval: float = 1.0) -> None:
        self._interval = interval

    def open(self, run: RunInfo) -> None:
        """Write that the run has begun."""
        self._path = run.run_dir / STATUS_FILE
        self._objective, self._pick_better = run.objective, {"min": min, "max": max}[run.direction]
        previous = _read_json(self._path) if run.start_step else {}
        best = previous.get("best")
        self._open_time = time.monotonic()
        self._previous_seconds = previous.get("seconds", 0.0)
        self._status: dict[str, Any] = {
            "state": "running",
            "model": run.model,
            "dataset": run.dataset,
            "step": run.start_step,
            "total_steps": run.total_steps,
            "epoch": -(-run.start_step // run.steps_per_epoch),
            "train": {},
            "test": previous.get("test", {}),
            "objective": run.objective,
            "best": best if best and best["step"] <= run.start_step else None,
            "warnings": previous.get("warnings", []),
            "error": None,
            "started": previous.get("started") or _format_utc_now(),
            "updated": _format_utc_now(),
            "seconds": self._previous_seconds,
            "environment": dict(run.environment),
            "data": dict(run.data_fingerprints),
        }
        self._write()

    def record(self, snapshot: Snapshot) -> None:
        """Note what is new; write it when the last writing is long enough ago."""
        status, clock = self._status, snapshot.clock
        status.update(step=clock.step, epoch=clock.epoch)
        status["train"] |= {name: float(curve.values[-1]) for name, curve in snapshot.train.items()}
        status["test"] = dict(snapshot.test) or status["test"]
        status["warnings"] += [text for text in dict.fromkeys(snapshot.warnings) if text not in status["warnings"]]
        self._update_best(snapshot)
        if time.monotonic() - self._last_write_time >= self._interval:
            self._write()

    def close(self, outcome: RunOutcome) -> None:
        """Write how the run ended."""
        self._status.update(state=outcome.state, step=outcome.step, error=outcome.error)
        self._write()

    def _update_best(self, snapshot: Snapshot) -> None:
        value = snapshot.test.get(self._objective, math.nan)
        best = self._status["best"]
        if math.isfinite(value) and (best is None or self._pick_better(value, best["value"]) != best["value"]):
            self._status["best"] = {"value": value, "step": snapshot.clock.step}

    def _write(self) -> None:
        self._last_write_time = time.monotonic()
        self._status["updated"] = _format_utc_now()
        # Of a resumed run without the time between its sittings.
        self._status["seconds"] = round(self._previous_seconds + self._last_write_time - self._open_time, 3)
        text = json.dumps(_replace_non_finite(self._status), indent=2, ensure_ascii=False)
        temporary_path = self._path.with_suffix(".json.tmp")
        temporary_path.write_text(text + "\n", encoding="utf-8")
        temporary_path.replace(self._path)  # whoever reads meanwhile sees the old file or the new one, never half


def _format_utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_json(path: Path) -> dict[str, Any]:
    """Return a status file's facts, or nothing where it is absent or damaged: it only adds history."""
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _replace_non_finite(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return `facts` with null for each NaN or infinity, which JSON does not know."""
    return {
        key: _replace_non_finite(value) if isinstance(value, Mapping) else _none_if_non_finite(value)
        for key, value in status.items()
    }


def _none_if_non_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
