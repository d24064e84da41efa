"""How much memory work takes, where the system tells how much was held at most: on Linux."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

CLEAR_REFS = Path("/proc/self/clear_refs")  # where the system is told to forget how much was held at most
PROC_STATUS = Path("/proc/self/status")


def can_measure() -> bool:
    """Return whether memory can be measured here."""
    return os.access(CLEAR_REFS, os.W_OK) and PROC_STATUS.is_file()


def measure_peak_megabytes(function: Callable[[], object]) -> float:
    """Return the megabytes that this process held at most during `work`, more than before."""
    ctypes.CDLL(None).malloc_trim(0)  # or the work would get what was freed before
    CLEAR_REFS.write_text("5")
    before = _read_status_bytes("VmRSS")
    function()
    return (_read_status_bytes("VmHWM") - before) / 1e6


def _read_status_bytes(name: str) -> int:
    """Return bytes."""
    (line,) = (line for line in PROC_STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
