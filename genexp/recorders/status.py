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
from genexp.snapshot import RunOutcome, RunInfo, Snapshot

FILE_NAME = "status.json"


@final
class Status(Recorder):
    """Writes `status.json`, at most once every `interval` seconds while the run goes on, and when it ends."""

    def __init__(self, interval: float = 1.0) -> None:
        self._interval = interval

    def open(self, run: RunInfo) -> None:
        """Write that the run has begun."""
        self._path = run.run_dir / FILE_NAME
        self._objective, self._best_of = run.objective, {"min": min, "max": max}[run.direction]
        before = _read(self._path) if run.start_step else {}
        best = before.get("best")
        self._opened = time.monotonic()
        self._seconds_before = before.get("seconds", 0.0)
        self._facts: dict[str, Any] = {
            "state": "running",
            "model": run.model,
            "dataset": run.dataset,
            "step": run.start_step,
            "total_steps": run.total_steps,
            "epoch": -(-run.start_step // run.steps_per_epoch),
            "train": {},
            "test": before.get("test", {}),
            "objective": run.objective,
            "best": best if best and best["step"] <= run.start_step else None,
            "warnings": before.get("warnings", []),
            "error": None,
            "started": before.get("started") or _now(),
            "updated": _now(),
            "seconds": self._seconds_before,
            "environment": dict(run.environment),
            "data": dict(run.data_fingerprints),
        }
        self._write()

    def record(self, snapshot: Snapshot) -> None:
        """Note what is new; write it when the last writing is long enough ago."""
        facts, clock = self._facts, snapshot.clock
        facts.update(step=clock.step, epoch=clock.epoch)
        facts["train"] |= {name: float(curve.values[-1]) for name, curve in snapshot.train.items()}
        facts["test"] = dict(snapshot.test) or facts["test"]
        facts["warnings"] += [text for text in dict.fromkeys(snapshot.warnings) if text not in facts["warnings"]]
        self._note_best(snapshot)
        if time.monotonic() - self._written >= self._interval:
            self._write()

    def close(self, outcome: RunOutcome) -> None:
        """Write how the run ended."""
        self._facts.update(state=outcome.state, step=outcome.step, error=outcome.error)
        self._write()

    def _note_best(self, snapshot: Snapshot) -> None:
        value = snapshot.test.get(self._objective, math.nan)
        best = self._facts["best"]
        if math.isfinite(value) and (best is None or self._best_of(value, best["value"]) != best["value"]):
            self._facts["best"] = {"value": value, "step": snapshot.clock.step}

    def _write(self) -> None:
        self._written = time.monotonic()
        self._facts["updated"] = _now()
        # Of a resumed run without the time between its sittings.
        self._facts["seconds"] = round(self._seconds_before + self._written - self._opened, 3)
        text = json.dumps(_without_nan(self._facts), indent=2, ensure_ascii=False)
        unfinished = self._path.with_suffix(".json.tmp")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(self._path)  # whoever reads meanwhile sees the old file or the new one, never half


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> dict[str, Any]:
    """Return a status file's facts, or nothing where it is absent or damaged: it only adds history."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _without_nan(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return `facts` with null for each NaN or infinity, which JSON does not know."""
    return {
        key: _without_nan(value) if isinstance(value, Mapping) else _finite(value) for key, value in facts.items()
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
