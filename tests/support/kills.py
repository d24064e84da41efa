"""Runs that are killed at a boundary of a file operation, and the content of run directories without times."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from genexp.run_dir import files
from genexp.run_dir.checkpoint import load_checkpoint
from genexp.run_dir.files import CLOCK_VARIABLE, KILL_VARIABLE
from tests.support.command import start_genexp

SECONDS_BETWEEN_CLOCK_READINGS = "0.4"  # status, pages and metrics are written at every few readings
TIME_KEYS = ("started", "updated", "seconds", "cpu_seconds")
UNCOMPARED_FILES = {".hydra", "train.log", ".lock"}  # with times, or empty
KILLED_EXIT_CODE = -9


def count_boundaries(*arguments: str, counter: Path) -> int:
    """Run the command line and return the number of its boundaries. `counter` is a new file."""
    counter.touch()
    with start_genexp(*arguments, prepare=_count_in_file, prepare_args=(counter,)) as process:
        process.join()
        assert process.exitcode == 0
    return counter.stat().st_size


def run_with_test_clock(*arguments: str, kill_at: int | None = None) -> int:
    """Run the command line, kill it at a boundary (from 1), and return its exit code."""
    with start_genexp(*arguments, prepare=_set_environment, prepare_args=(kill_at,)) as process:
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def _set_environment(kill_at: int | None) -> None:
    os.environ[CLOCK_VARIABLE] = SECONDS_BETWEEN_CLOCK_READINGS
    if kill_at is not None:
        os.environ[KILL_VARIABLE] = str(kill_at)


def _count_in_file(counter: Path) -> None:
    _set_environment(None)

    def pass_boundary() -> None:
        with counter.open("ab") as file:
            file.write(b".")

    files._pass_boundary = pass_boundary


def read_run_content(run_dir: Path) -> dict[str, Any]:
    """Return relative path → content of each file of a run, without times and without its own path.

    All event files are one entry, since each resumption adds a file.
    """
    content: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if path.is_dir() or name.split("/")[0] in UNCOMPARED_FILES or path.name.startswith("events."):
            continue
        content[name] = _read_file_content(path, run_dir)
    content["tensorboard/events"] = list(_iter_events(run_dir / "tensorboard"))
    return content


def _read_file_content(path: Path, run_dir: Path) -> Any:
    if path.suffix == ".pt":
        checkpoint = load_checkpoint(path)
        offsets = checkpoint.get("log_offsets", {})
        return {
            **checkpoint,
            "log_offsets": {name: size for name, size in offsets.items() if "events" not in name},
        }
    if path.name == "status.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in TIME_KEYS}
    if path.name == "report.html":
        text = path.read_text().replace(str(run_dir), "RUN_DIR")
        return re.sub(r"<dt>time</dt><dd>.*?</dd>", "", text)
    return path.read_bytes()


def _iter_events(event_dir: Path) -> Iterator[tuple[int, bytes]]:
    """Yield step and summary of each event, after the purges that a reader makes at the start of a resumption."""
    events: list[tuple[int, bytes]] = []
    for path in sorted(event_dir.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log"):
                events = [(step, summary) for step, summary in events if step < event.step]
            elif event.HasField("summary") and not event.summary.value[0].tag.startswith("_hparams_/session"):
                events.append((event.step, event.summary.SerializeToString()))
    yield from events
