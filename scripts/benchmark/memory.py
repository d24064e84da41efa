"""Peak memory of a function call on Linux, read from /proc."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

CLEAR_REFS_PATH = Path("/proc/self/clear_refs")  # writing 5 resets the peak
PROC_STATUS = Path("/proc/self/status")


def can_measure() -> bool:
    """Return whether this system allows the measurement."""
    return os.access(CLEAR_REFS_PATH, os.W_OK) and PROC_STATUS.is_file()


def measure_peak_megabytes(function: Callable[[], object]) -> float:
    """Return the increase of resident memory to its peak during `function`, in 10⁶ bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # otherwise `function` would reuse memory that was freed before
    CLEAR_REFS_PATH.write_text("5")
    before = _read_status_bytes("VmRSS")
    function()
    return (_read_status_bytes("VmHWM") - before) / 1e6


def _read_status_bytes(name: str) -> int:
    """Return a field of /proc/self/status, which is in KiB, in bytes."""
    (line,) = (line for line in PROC_STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
