"""File operations of run directories: atomic writes, appends, reads of regular files, locks."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import math
import os
import secrets
import signal
import stat
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from io import TextIOWrapper
from pathlib import Path
from types import NoneType, UnionType
from typing import IO, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from genexp.errors import CheckpointError, DataError, RunDirInUseError
from genexp.run_dir.paths import LOCK_FILE, TEMPORARY_SUFFIX, WANDB_DIR, format_path

ContentT = TypeVar("ContentT")
# A test sets this environment variable to n: the process kills itself at the n-th boundary of a file operation.
KILL_VARIABLE = "GENEXP_KILL_AT_FILE_BOUNDARY"
LOCK_SECONDS = 1.0  # a run waits this long for a lock, because `is_locked` holds it for microseconds
LOCK_POLL_SECONDS = 0.02
# A test sets this environment variable to the seconds between two successive results of `read_time`.
CLOCK_VARIABLE = "GENEXP_SECONDS_BETWEEN_CLOCK_READINGS"
REPLACE_RETRY_SECONDS = (0.01, 0.05, 0.25, 1.0)  # Windows does not replace a file that is being read
MAX_SYNC_THREADS = 16
_boundary_numbers = itertools.count(1)
_clock_readings = itertools.count()


def read_time() -> float:
    """Return the time of a monotonic clock in seconds, for the intervals between writes."""
    seconds = os.environ.get(CLOCK_VARIABLE)
    return time.monotonic() if seconds is None else float(seconds) * next(_clock_readings)


def open_regular_file(path: Path, flags: int = os.O_RDONLY) -> IO[bytes]:
    """Open `path` without following a link where the system can, and return the binary file.

    `flags` are flags of `os.open`. Writes are not buffered.
    Raises OSError, also if `path` is a link or not a regular file.
    """
    no_follow = getattr(os, "O_NOFOLLOW", 0)
    if not no_follow and path.is_symlink():
        raise OSError(errno.ELOOP, "a link, not a file", str(path))
    # O_NONBLOCK: opening a named pipe would otherwise wait for its other end.
    flags |= no_follow | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, not a file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if flags & (os.O_WRONLY | os.O_RDWR):
        return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "wb", buffering=0)
    return os.fdopen(descriptor, "rb")


class LogFileHandler(logging.FileHandler):
    """Handler that appends to a log file, and does not follow a link."""

    def _open(self) -> TextIOWrapper:
        file = open_regular_file(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return TextIOWrapper(file, self.encoding or "utf-8", errors="backslashreplace", write_through=True)


def check_no_links(directory: Path, is_written: Callable[[str], bool]) -> None:
    """Raise CheckpointError where a run or sweep directory contains a link, a named pipe or another special file.

    At the top of `directory`, only names for which `is_written` returns True count. Below them, all names do,
    except in the directory of Weights & Biases, whose package makes links.
    """
    pending = [path for path in directory.iterdir() if is_written(path.name)]
    while pending:
        path = pending.pop()
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode) and path != directory / WANDB_DIR:
                pending.extend(path.iterdir())
        except FileNotFoundError:
            continue  # removed by a live process
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            kind = "a link" if stat.S_ISLNK(mode) else "not a file or directory"
            raise CheckpointError(f"{format_path(path)}: {kind}. Replace it by a regular file or directory.")


def read_file(path: Path) -> bytes:
    """Return the content of a regular file. Raises OSError."""
    with open_regular_file(path) as file:
        return file.read()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises FileNotFoundError, and DataError if the file is damaged."""
    try:
        content = json.loads(read_file(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{format_path(path)}: not readable ({error.strerror}). Check its permissions.") from None
    except (ValueError, RecursionError):  # also bytes that are not UTF-8, and numbers of thousands of digits
        raise DataError(f"{format_path(path)}: damaged (not JSON). Restore or delete it.") from None
    if not isinstance(content, dict):
        raise DataError(f"{format_path(path)}: damaged (not a JSON object). Restore or delete it.")
    return content


def build_from_json(cls: type[ContentT], content: Mapping[str, Any], path: Path) -> ContentT:
    """Return the JSON object of the file `path` as the dataclass `cls`, whose annotations are its schema.

    Keys that are not fields are ignored. Raises DataError where a key is missing or a value has another type.
    """
    annotations = get_type_hints(cls)
    values = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in content:
            try:
                values[field.name] = _convert_json(content[field.name], annotations[field.name], path)
            except (TypeError, OverflowError):
                text = textwrap.shorten(repr(content[field.name])[:200], 60, placeholder=" ...")
                reason = f"{field.name} is {text}, not {_describe_json(annotations[field.name])}"
                raise DataError(f"{format_path(path)}: damaged ({reason}). Restore or delete it.") from None
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DataError(f"{format_path(path)}: damaged (no {field.name}). Restore or delete it.")
    return cls(**values)


def _convert_json(value: Any, annotation: Any, path: Path) -> Any:
    """Return a JSON value as the type of an annotation. Raises TypeError or OverflowError if it is of another."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        kind, none_type = arguments
        assert none_type is NoneType
        return None if value is None else _convert_json(value, kind, path)
    if origin is Mapping and isinstance(value, dict):
        return {key: _convert_json(item, arguments[1], path) for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_convert_json(item, arguments[0], path) for item in value)
    if is_dataclass(annotation) and isinstance(value, dict):
        return build_from_json(annotation, value, path)  # type: ignore[arg-type]
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if annotation is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if annotation is int and type(value) is int and abs(value) < 2**63:
        return value
    if annotation is str and isinstance(value, str):
        return value
    raise TypeError


def _describe_json(annotation: Any) -> str:
    """Return the JSON type of an annotation, as words of an error message."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return f"{_describe_json(arguments[0])} or null"
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(arguments)}"
    names = {str: "a string", int: "an integer", float: "a finite number", tuple: "a list"}
    return names.get(get_origin(annotation) or annotation, "an object")


def write_file(path: Path, content: str | bytes | memoryview, *, should_sync: bool = False) -> None:
    """Write a file atomically: a reader, and a process that resumes the run, finds the old content or the new.

    With `should_sync` the content is on the disk when the function returns, and survives a power failure.
    Raises OSError. A file that was at `path` before is then unchanged.
    """
    data = _encode(content)
    temporary_path = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with _name_errors(path):
            new_file = open_regular_file(temporary_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with new_file as file, _name_errors(path):
            _write_all(file, data)
            if should_sync:
                os.fsync(file.fileno())
        _replace(temporary_path, path)
    except BaseException:
        temporary_path.unlink(missing_ok=True)
        raise
    if should_sync:
        _sync_dir(path.parent)
    _pass_boundary()


def write_json(path: Path, content: Any, *, should_sync: bool = False) -> None:
    """Write `content` as indented JSON, atomically. Raises OSError."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", should_sync=should_sync)


def append_file(path: Path, content: str | bytes) -> None:
    """Append to a file, and create it if it is absent. Raises OSError."""
    with open_regular_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file, _name_errors(path):
        _write_all(file, _encode(content))


def create_dir(directory: Path) -> None:
    """Create a folder and its missing parents. They survive a power failure. Raises OSError."""
    if not directory.is_dir():
        create_dir(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync_dir(directory.parent)


def sync_files(paths: Iterable[Path]) -> None:
    """Flush files and their entries in their folders to the disk: they survive a power failure. Raises OSError."""
    paths = list(paths)
    _sync_all(paths, {path.parent for path in paths})


def sync_tree(directory: Path) -> None:
    """Flush all files and folders in a folder to the disk, without following links. Raises OSError."""
    files: list[Path] = []
    folders: list[Path] = []
    for folder, _, names in os.walk(directory):
        paths = [Path(folder, name) for name in names]
        files += [path for path in paths if path.is_file() and not path.is_symlink()]
        folders.append(Path(folder))
    _sync_all(files, folders)


def _sync_all(files: Collection[Path], folders: Collection[Path]) -> None:
    """Flush files, then folders, in threads: a file system completes concurrent flushes together."""
    from concurrent.futures import ThreadPoolExecutor  # only runs and sweeps need it

    with ThreadPoolExecutor(MAX_SYNC_THREADS) as pool:
        for synchronize, paths in ((_sync_file, files), (_sync_dir, folders)):
            for _ in pool.map(synchronize, paths):  # raises the first error
                pass


def _sync_file(path: Path) -> None:
    with open_regular_file(path, os.O_RDWR) as file:
        os.fsync(file.fileno())


def truncate_file(path: Path, size: int) -> None:
    """Truncate a file to `size` bytes. Raises OSError."""
    with open_regular_file(path, os.O_RDWR) as file:
        file.truncate(size)
    _pass_boundary()


def remove_file(path: Path) -> None:
    """Remove a file if it exists. Raises OSError."""
    if path.exists():
        path.unlink(missing_ok=True)
        _pass_boundary()


def remove_temporary_files(directory: Path, *, is_recursive: bool) -> None:
    """Remove the incomplete files of killed processes from `directory`; with `is_recursive` also from below."""
    find = directory.rglob if is_recursive else directory.glob
    for path in find(f"*{TEMPORARY_SUFFIX}"):
        remove_file(path)


@contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Hold an exclusive lock on a run or sweep directory within the block. The lock of a dead process is released.

    Raises RunDirInUseError where another process holds it.
    """
    with lock_file(run_dir / LOCK_FILE, in_use=f"{format_path(run_dir)}: in use by another process"):
        yield


@contextmanager
def lock_file(path: Path, in_use: str) -> Iterator[None]:
    """Hold an exclusive lock on `path` within the block, and create the file if it is absent.

    Raises RunDirInUseError with the message `in_use` where another process holds it.
    """
    from filelock import FileLock, Timeout  # only runs and sweeps need it

    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_SECONDS, poll_interval=LOCK_POLL_SECONDS)
    except Timeout:
        raise RunDirInUseError(f"{in_use}. Wait for that process, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(run_dir: Path) -> bool:
    """Return whether a live process holds the lock of a run directory.

    The check itself holds the lock for a short time. `lock_run_dir` waits for that time.
    """
    from filelock import FileLock, Timeout

    path = run_dir / LOCK_FILE
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


@contextmanager
def _name_errors(path: Path) -> Iterator[None]:
    """Set `path` as the file name of an OSError that has none, or has that of a temporary file."""
    try:
        yield
    except OSError as error:
        is_temporary = str(error.filename).endswith(TEMPORARY_SUFFIX)
        error.filename = str(path) if is_temporary or not error.filename else error.filename
        raise


def _encode(content: str | bytes | memoryview) -> bytes | memoryview:
    """Return text in UTF-8. Parts of file names that are not UTF-8 become escapes, as in JSON."""
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


def _write_all(file: IO[bytes], data: bytes | memoryview) -> None:
    """Write `data` in two parts, with a boundary after each."""
    for part in (memoryview(data)[: len(data) // 2], memoryview(data)[len(data) // 2 :]):
        while part:
            part = part[file.write(part) :]
        _pass_boundary()


def _replace(source: Path, target: Path) -> None:
    for seconds in REPLACE_RETRY_SECONDS if os.name == "nt" else ():
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(seconds)
        else:
            return
    source.replace(target)


def _sync_dir(directory: Path) -> None:
    """Flush the entries of a folder to the disk, where the system can (Windows cannot open a folder)."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pass_boundary() -> None:
    """Kill this process if the boundary is the one that KILL_VARIABLE names."""
    number = os.environ.get(KILL_VARIABLE)
    if number is not None and next(_boundary_numbers) == int(number):
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
