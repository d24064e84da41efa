"""Checkpoint files, verified by SHA-256, and the sizes of the logs that belong to a checkpoint."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from genexp.device import check_memory
from genexp.errors import CheckpointError, GenexpError
from genexp.run_dir.files import create_dir, open_regular_file, remove_file, sync_files, truncate_file, write_file
from genexp.run_dir.paths import CHECKPOINTS_DIR, METRICS_FILE, OLD_EVENTS_DIR, format_path

FORMAT_VERSION = 2
LOG_PATTERNS = (METRICS_FILE, "events.*", f"{OLD_EVENTS_DIR}/events.*")  # glob patterns of the append-only files
MAX_VALUES = 10**6  # values in a checkpoint; checkpoints of the built-in techniques have hundreds
MAX_DEPTH = 100  # of nested dicts, lists and tuples
# Allowed names in a pickle (tensors and plain values), and other instructions of a pickle that name objects.
_OBJECT_PATTERN = re.compile(
    r"torch\._utils _rebuild_tensor_v[23]|collections OrderedDict|torch (?:\w+Storage|\w*int\d+)"
    r"|torch\.storage UntypedStorage"
)
_OBJECT_OPCODES = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
_STEP_FILE_PATTERN = re.compile(r"step-(\d+)\.pt")


def get_checkpoint_path(run_dir: Path, step: int) -> Path:
    """Return the path of the checkpoint of `step`."""
    return run_dir / CHECKPOINTS_DIR / f"step-{step:08d}.pt"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the paths of a run's step checkpoints, newest first. `best.pt` is not among them."""
    files = [
        file for file in (run_dir / CHECKPOINTS_DIR).glob("step-*.pt") if _STEP_FILE_PATTERN.fullmatch(file.name)
    ]
    return sorted(files, key=lambda file: int(file.stem.removeprefix("step-")), reverse=True)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` (tensors and plain values) and its checksum to `path`, atomically and durably.

    Raises CheckpointError if writing fails. A file that was at `path` before is then unchanged.
    """
    payload = {**_clone_views(content), "format": FORMAT_VERSION}
    payload["checksum"] = compute_checksum(payload)
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    try:
        create_dir(path.parent)
        write_file(path, buffer.getbuffer(), should_sync=True)
    except OSError as error:
        raise CheckpointError(
            f"{path}: not written ({error.strerror}). Free disk space and resume: earlier checkpoints are intact."
        ) from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content that `save_checkpoint` wrote, with tensors on the CPU.

    Raises CheckpointError if the file is unreadable, damaged, holds objects that could execute code, or declares
    more bytes than it has. Raises ConfigError if it exceeds the memory.
    """
    try:
        with open_regular_file(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about a file that torch rejects anyway
            check_memory(os.fstat(file.fileno()).st_size, format_path(path))
            _check_archive(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
            _check_values(content, os.fstat(file.fileno()).st_size)
    except GenexpError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: not loaded: it contains other objects than tensors and plain values, possibly code. "
            f"Use a checkpoint that genexp wrote."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: not readable ({error.strerror or error}). Check its permissions and the disk."
        ) from None
    except MemoryError:
        raise  # not caused by the file
    except Exception as error:  # torch.load raises errors of many types for a damaged file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: damaged ({reason}). Use another checkpoint.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT_VERSION}. Use another checkpoint.")
    stored_checksum, checksum = str(content.pop("checksum", None)), compute_checksum(content)
    if stored_checksum != checksum:
        reason = f"its checksum is {checksum[:8]}, not the stored {stored_checksum[:8]}"
        raise CheckpointError(f"{path}: damaged ({reason}). Use another checkpoint.")
    return content


def load_newest_checkpoint(run_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the newest valid checkpoint, and a warning for each newer invalid one.

    A checkpoint is also invalid if a log is shorter than it requires: a power failure may have truncated it.
    Raises CheckpointError if no checkpoint is valid.
    """
    files = list_checkpoints(run_dir)
    if not files:
        raise CheckpointError(f"resume={run_dir}: no checkpoint. Start a new run.")
    errors: list[str] = []
    for file in files:
        try:
            state = load_checkpoint(file)
            if state.get("step") != 0:  # at step 0 all logs are written again
                find_cut_points(run_dir, state.get("log_offsets"))
            return state, [f"{error} The previous checkpoint is used." for error in errors]
        except CheckpointError as error:
            errors.append(str(error))
    raise CheckpointError(
        f"resume={run_dir}: no usable checkpoint ({errors[0].partition('. ')[0]}). Start a new run."
    )


def list_logs(run_dir: Path) -> list[Path]:
    """Return the existing append-only files of a run: metrics and TensorBoard events."""
    return sorted(path for pattern in LOG_PATTERNS for path in run_dir.glob(pattern))


def measure_logs(run_dir: Path) -> dict[str, int]:
    """Flush the logs of a run to the disk. Return path relative to `run_dir` → size in bytes.

    A checkpoint must be written afterwards: a power failure then removes no log data that it requires. Raises
    OSError.
    """
    paths = list_logs(run_dir)
    sync_files(paths)
    return {path.relative_to(run_dir).as_posix(): path.stat().st_size for path in paths}


def find_cut_points(run_dir: Path, log_offsets: Any) -> dict[Path, int]:
    """Return the path of each log and the size to which it is truncated, for `log_offsets` of a checkpoint.

    `log_offsets` is the result of `measure_logs`. Raises CheckpointError if a log is missing or shorter than its
    entry, or if an entry names another file.
    """
    if not isinstance(log_offsets, dict):
        raise CheckpointError(f"{run_dir}: no log sizes in the checkpoint. Use another checkpoint.")
    paths = {path.relative_to(run_dir).as_posix(): path for path in list_logs(run_dir)}
    cut_points = {}
    for name, size in log_offsets.items():
        if name not in paths:
            raise CheckpointError(
                f"{run_dir}: no log {name}, which the checkpoint requires. Use another checkpoint."
            )
        if type(size) is not int or not 0 <= size <= paths[name].stat().st_size:
            raise CheckpointError(f"{paths[name]}: shorter than the checkpoint requires. Use another checkpoint.")
        cut_points[paths[name]] = size
    return cut_points


def truncate_logs(run_dir: Path, log_offsets: Mapping[str, int]) -> None:
    """Truncate the logs of a run to the sizes in `log_offsets`, the result of `measure_logs`.

    A log without an entry was created after the checkpoint and is deleted. Raises CheckpointError like
    `find_cut_points`, and OSError.
    """
    cut_points = find_cut_points(run_dir, log_offsets)
    for path in list_logs(run_dir):
        if path not in cut_points:
            remove_file(path)
        elif path.stat().st_size > cut_points[path]:
            truncate_file(path, cut_points[path])


def compute_checksum(content: Any) -> str:
    """Return the hexadecimal SHA-256 of nested dicts, lists and tuples of tensors and plain values."""
    digest = hashlib.sha256()
    for piece in _iter_bytes(content):
        digest.update(piece)
    return digest.hexdigest()


def _check_archive(file: IO[bytes]) -> None:
    """Raise an error where a file is not an archive that `torch.save` wrote from tensors and plain values.

    A compressed part could unpack to any size, and an object such as `bytearray` could take any memory.
    Raises ValueError, BadZipFile or UnpicklingError.
    """
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        size = os.fstat(file.fileno()).st_size
        if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
            raise ValueError("its parts are larger than the file")
        for part in parts:
            if part.filename.endswith("/data.pkl"):
                for opcode, argument, _ in pickletools.genops(archive.read(part)):
                    if opcode.name in _OBJECT_OPCODES or (
                        opcode.name == "GLOBAL" and not _OBJECT_PATTERN.fullmatch(str(argument))
                    ):
                        raise pickle.UnpicklingError(argument)
    file.seek(0)


def _check_values(content: Any, size: int) -> None:
    """Raise ValueError if copies of nested values need far more memory than the `size` bytes of their file.

    For example, a tensor with stride 0 repeats one element, and nested lists can contain the same list many times.
    """
    storages: dict[int, int] = {}  # address → bytes
    pending, count = [(content, 0)], 0
    while pending:
        value, depth = pending.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels")
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu":
                found = f"{str(value.layout).removeprefix('torch.')} on {value.device.type}"
                raise ValueError(f"a tensor is {found}, not strided on cpu")
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            if value.nbytes > storage.nbytes():
                raise ValueError(f"a tensor of {value.nbytes:,} bytes has {storage.nbytes():,} bytes of data")
        elif isinstance(value, Mapping):
            pending += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple):
            pending += [(item, depth + 1) for item in value]
    if sum(storages.values()) > size:
        raise ValueError(f"its tensors have {sum(storages.values()):,} bytes, more than the {size:,} of the file")


def _clone_views(value: Any) -> Any:
    """Return nested content in which each tensor view is replaced by a copy.

    `torch.save` would write the whole storage that a view belongs to.
    """
    if isinstance(value, Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, Mapping):
        return {key: _clone_views(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_clone_views(item) for item in value)
    return value


def _iter_bytes(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        yield f"{data.dtype}{tuple(data.shape)}".encode()
        yield data.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        yield f"dict{len(value)}".encode()
        for key, item in value.items():
            yield repr(key).encode()
            yield from _iter_bytes(item)
    elif isinstance(value, list | tuple):
        yield f"{type(value).__name__}{len(value)}".encode()
        for item in value:
            yield from _iter_bytes(item)
    else:
        yield repr(value).encode()
