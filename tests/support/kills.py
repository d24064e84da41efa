"""Runs that are killed at a boundary of a file operation or lose power there, and their content without times."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from genexp.run_dir import files
from genexp.run_dir.checkpoint import load_checkpoint
from genexp.run_dir.files import CLOCK_VARIABLE, KILL_VARIABLE
from genexp.run_dir.paths import CONFIG_FILE
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


def run_with_test_clock(*arguments: str, kill_at: int | None = None, power_loss_dir: Path | None = None) -> int:
    """Run the command line, kill it at a boundary (from 1), and return its exit code.

    With `power_loss_dir`, everything that was not flushed to the disk is removed from this directory at the kill.
    """
    prepare = _set_environment if power_loss_dir is None else _simulate_power_loss
    with start_genexp(*arguments, prepare=prepare, prepare_args=(kill_at, power_loss_dir)) as process:
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def kill_and_finish(*arguments: str, run_dir: Path, boundary: int, has_power_loss: bool = False) -> dict[str, Any]:
    """Run the command line, kill it at a boundary, resume it until it has finished, and return its content.

    A run that was killed before it wrote its configuration is started again. `arguments` write into `run_dir`.
    """
    exit_code = run_with_test_clock(
        *arguments, kill_at=boundary, power_loss_dir=run_dir if has_power_loss else None
    )
    assert exit_code == KILLED_EXIT_CODE, f"not killed at boundary {boundary}"
    if not is_finished(run_dir):
        command = (f"resume={run_dir}",) if (run_dir / CONFIG_FILE).exists() else arguments
        assert run_with_test_clock(*command) == 0, f"not resumed after a kill at boundary {boundary}"
    return read_run_content(run_dir)


def is_finished(run_dir: Path) -> bool:
    """Return whether the status of a run is "finished". After a power loss, the file may be empty."""
    path = run_dir / "status.json"
    text = path.read_text() if path.is_file() else ""
    return bool(text) and json.loads(text)["state"] == "finished"


def _set_environment(kill_at: int | None, _: Path | None = None) -> None:
    os.environ[CLOCK_VARIABLE] = SECONDS_BETWEEN_CLOCK_READINGS
    if kill_at is not None:
        os.environ[KILL_VARIABLE] = str(kill_at)


def _count_in_file(counter: Path) -> None:
    _set_environment(None)

    def pass_boundary() -> None:
        with counter.open("ab") as file:
            file.write(b".")

    files._pass_boundary = pass_boundary


class DurableFiles:
    """Content of a directory on the disk, as far as calls of fsync guarantee it.

    A file is durable up to its last fsync. A name is durable since the last fsync of its folder: before, a new
    file is absent, and a replaced or removed one is there with its old content. The folder itself exists.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._contents: dict[int, bytes] = {}  # of an inode
        self._names: dict[Path, dict[str, int]] = {}  # folder → name → inode
        self._kept_descriptors: list[int] = []  # an inode number is not used again while one is open

    def sync(self, descriptor: int) -> None:
        """Record the state of an open file or folder."""
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not path.is_relative_to(self._directory):
            return
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._names[path] = {item.name: item.stat().st_ino for item in path.iterdir()}
        else:
            self._contents[os.fstat(descriptor).st_ino] = path.read_bytes()
        self._kept_descriptors.append(os.dup(descriptor))

    def restore(self) -> None:
        """Replace the directory by its durable content."""
        folders = {path.stat().st_ino: path for path in self._directory.rglob("*") if path.is_dir()}
        content = dict(self._iter_files(self._directory, folders))
        shutil.rmtree(self._directory)
        self._directory.mkdir()
        for path, data in content.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def _iter_files(self, folder: Path, folders: dict[int, Path]) -> Iterator[tuple[Path, bytes]]:
        for name, inode in self._names.get(folder, {}).items():
            if inode in folders:
                yield from self._iter_files(folder / name, folders)
            else:
                yield folder / name, self._contents.get(inode, b"")


def _simulate_power_loss(kill_at: int, directory: Path) -> None:
    _set_environment(None)
    durable_files = DurableFiles(directory.resolve())
    remaining = iter(range(kill_at - 1, -1, -1))
    fsync = os.fsync

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        durable_files.sync(descriptor)

    def pass_boundary() -> None:
        if next(remaining) == 0:
            durable_files.restore()
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = record_fsync  # type: ignore[assignment]
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
