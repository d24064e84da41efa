"""Runs that are killed at a boundary of a file operation or lose power there, and their content without times.

`kill_and_finish` kills a process. `record_states` needs one run for all boundaries: it copies what a kill, and
what a power loss, leaves at each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    return finish_run(*arguments, run_dir=run_dir)


def finish_run(*arguments: str, run_dir: Path) -> dict[str, Any]:
    """Resume an interrupted run until it has finished, and return its content."""
    if not is_finished(run_dir):
        command = (f"resume={run_dir}",) if (run_dir / CONFIG_FILE).exists() else arguments
        assert run_with_test_clock(*command) == 0, "not resumed"
    return read_run_content(run_dir)


@dataclass(frozen=True)
class InterruptedState:
    """Content of a run directory after a kill or a power loss at a boundary."""

    interruption: str  # "kill" or "power loss"
    boundary: int
    digests: Mapping[str, str | None]  # relative path → digest of the file, or None for a folder
    blobs: Path  # folder with the content of each digest

    def restore(self, run_dir: Path) -> None:
        """Make `run_dir` equal to this state."""
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir()
        for name, digest in sorted(self.digests.items()):
            path = run_dir / name
            if digest is None:
                path.mkdir(exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.blobs / digest, path)


def record_states(*arguments: str, run_dir: Path, directory: Path) -> tuple[int, list[InterruptedState]]:
    """Run the command line, and return its number of boundaries and the distinct states that interruptions leave.

    Two states that differ in UNCOMPARED_FILES only are one. `arguments` write into `run_dir`, and `directory` is
    absent.
    """
    blobs, index = directory / "blobs", directory / "index.jsonl"
    blobs.mkdir(parents=True)
    with start_genexp(*arguments, prepare=_record_at_boundaries, prepare_args=(run_dir, blobs, index)) as process:
        process.join()
        assert process.exitcode == 0
    states: dict[tuple[Any, ...], InterruptedState] = {}
    count = 0
    for count, line in enumerate(index.read_text().splitlines(), start=1):
        for interruption, digests in json.loads(line).items():
            compared = ((name, digest) for name, digest in digests.items() if not _is_uncompared(name))
            states.setdefault(tuple(sorted(compared)), InterruptedState(interruption, count, digests, blobs))
    return count, list(states.values())


def _record_at_boundaries(run_dir: Path, blobs: Path, index: Path) -> None:
    _set_environment(None)
    run_dir = run_dir.resolve()
    durable_files = DurableFiles(run_dir)
    _record_fsyncs(durable_files)

    def store(content: bytes) -> str:
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        if not (blobs / digest).exists():
            (blobs / digest).write_bytes(content)
        return digest

    def pass_boundary() -> None:
        killed: dict[str, str | None] = {
            path.relative_to(run_dir).as_posix(): None if path.is_dir() else store(path.read_bytes())
            for path in run_dir.rglob("*")
        }
        lost: dict[str, str | None] = {
            path.relative_to(run_dir).as_posix(): store(content) for path, content in durable_files.read().items()
        }
        with index.open("a") as file:
            file.write(json.dumps({"kill": killed, "power loss": lost}) + "\n")

    files._pass_boundary = pass_boundary


def _record_fsyncs(durable_files: DurableFiles) -> None:
    fsync = os.fsync

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        durable_files.sync(descriptor)

    os.fsync = record_fsync  # type: ignore[assignment]


def _is_uncompared(name: str) -> bool:
    return name.split("/")[0] in UNCOMPARED_FILES


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

    def read(self) -> dict[Path, bytes]:
        """Return path → durable content of each file."""
        folders = {path.stat().st_ino: path for path in self._directory.rglob("*") if path.is_dir()}
        return dict(self._iter_files(self._directory, folders))

    def restore(self) -> None:
        """Replace the directory by its durable content."""
        content = self.read()
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
    _record_fsyncs(durable_files)

    def pass_boundary() -> None:
        if next(remaining) == 0:
            durable_files.restore()
            os.kill(os.getpid(), signal.SIGKILL)

    files._pass_boundary = pass_boundary


def read_run_content(run_dir: Path) -> dict[str, Any]:
    """Return relative path → content of each file of a run, without times and without its own path.

    All event files are one entry, since each resumption adds a file.
    """
    content: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if path.is_dir() or _is_uncompared(name) or path.name.startswith("events."):
            continue
        content[name] = _read_file_content(path, run_dir)
    content["events"] = list(_iter_events(run_dir))
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
        text = re.sub(r"<dt>time</dt><dd>.*?</dd>|<option[^>]*>minutes</option>", "", text)
        return re.sub(r"<summary>Console log</summary>.*?</details>", "", text, flags=re.DOTALL)
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
