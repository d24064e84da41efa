"""Status of a run in `status.json`: schema, validated reader and writer. Importing it does not import torch."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from genexp.errors import DataError
from genexp.run_dir.files import build_from_json, read_json, remove_file, write_file, write_json
from genexp.run_dir.paths import CHECKPOINTS_DIR, CONFIG_FILE, STATUS_FILE, STATUS_RESERVE_FILE

STATUS_RESERVE_BYTES = 2**16


@dataclass(frozen=True)
class BestScore:
    """Best value of the objective so far."""

    value: float
    step: int


@dataclass(frozen=True)
class RunStatus:
    """State, progress, scores and environment of a run. The fields are the keys of `status.json`."""

    state: Literal["waiting", "running", "finished", "stopped", "failed"]  # "waiting" is never written
    model: str = ""
    dataset: str = ""
    step: int = 0
    total_steps: int | None = None
    epoch: int = 0
    train: Mapping[str, float | None] = field(default_factory=dict)  # None: not finite
    test: Mapping[str, float | None] = field(default_factory=dict)  # of the latest evaluation
    objective: str = ""
    best: BestScore | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None  # message of the error that ended a failed run
    started: str = ""  # ISO 8601
    updated: str = ""  # ISO 8601
    seconds: float | None = None  # wall-clock time, without the time between an interruption and the resumption
    cpu_seconds: float | None = None  # processor time of all threads of the process
    environment: Mapping[str, str] = field(default_factory=dict)  # device, versions and commit
    data: Mapping[str, str] = field(default_factory=dict)  # split → its size and checksum

    @property
    def fraction_done(self) -> float:
        """Fraction of the steps that are done, in [0, 1]."""
        if self.state == "finished":
            return 1.0
        return self.step / self.total_steps if self.total_steps else 0.0

    @property
    def objective_value(self) -> float | None:
        """Latest value of the objective, None if there is none."""
        return self.test.get(self.objective)


def read_status(run_dir: Path) -> RunStatus | None:
    """Return the status of the run in `run_dir`, or None without a file. Raises DataError if it is damaged."""
    path = run_dir / STATUS_FILE
    try:
        return build_from_json(RunStatus, read_json(path), path)
    except FileNotFoundError:
        return None


def read_job_status(run_dir: Path, min_mtime: float = 0.0) -> RunStatus:
    """Return the status of a sweep job; state "waiting" without a readable status file.

    A status file modified before `min_mtime` (POSIX seconds) belongs to an earlier attempt. A job killed
    in that attempt would still be marked "running". Its state is "waiting" unless it is "finished".
    """
    try:
        status = read_status(run_dir)
    except DataError:  # the job replaces the file when it starts
        status = None
    if status is None:
        return RunStatus("waiting")
    if status.state != "finished" and (run_dir / STATUS_FILE).stat().st_mtime < min_mtime:
        return replace(status, state="waiting", error=None)
    return status


def write_status(run_dir: Path, status: RunStatus, *, should_sync: bool = False) -> None:
    """Write `status.json` atomically, with the current time and None for each value that is not finite.

    If the disk is full, the space that `reserve_status_space` reserved is used. With `should_sync` the file
    survives a power failure. Raises OSError.
    """
    path, content = run_dir / STATUS_FILE, _replace_non_finite(asdict(replace(status, updated=format_utc_now())))
    try:
        write_json(path, content, should_sync=should_sync)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        release_status_space(run_dir)
        write_json(path, content, should_sync=should_sync)


def reserve_status_space(run_dir: Path) -> None:
    """Reserve disk space, so that the last status of a run can be written to a full disk. Raises OSError."""
    path = run_dir / STATUS_RESERVE_FILE
    if not path.exists():
        write_file(path, os.urandom(STATUS_RESERVE_BYTES))  # zeros take no space on some file systems


def release_status_space(run_dir: Path) -> None:
    """Free the space that `reserve_status_space` reserved."""
    remove_file(run_dir / STATUS_RESERVE_FILE)


def is_resumable(run_dir: Path) -> bool:
    """Return whether the run in `run_dir` has a configuration and a checkpoint to resume from."""
    return (run_dir / CONFIG_FILE).is_file() and any((run_dir / CHECKPOINTS_DIR).glob("step-*.pt"))


def record_failure(run_dir: Path, config: Mapping[str, Any], error: str) -> None:
    """Write "failed" and `error` to `status.json` for a run whose status recorder could not do so.

    Other fields of an existing file are kept. `config` is plain and resolved.
    """
    try:
        status = read_status(run_dir)
    except DataError:
        status = None
    model, dataset, trainer = (config.get(group) or {} for group in ("model", "dataset", "trainer"))
    status = status or RunStatus(
        "failed",
        model=str(model.get("name", "")),
        dataset=str(dataset.get("name", "")),
        objective=str(trainer.get("objective", "")).removeprefix("test/"),
        started=format_utc_now(),
    )
    write_status(run_dir, replace(status, state="failed", error=error), should_sync=True)


def format_utc_now() -> str:
    """Return the current time in UTC, in the format ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _replace_non_finite(value: Any) -> Any:
    """Return nested dicts with None for each NaN or infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
