"""How much memory work takes, where the system tells how much was held at most: on Linux."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

PEAK = Path("/proc/self/clear_refs")  # where the system is told to forget how much was held at most
STATUS = Path("/proc/self/status")


def is_told() -> bool:
    """Return whether memory can be measured here."""
    return os.access(PEAK, os.W_OK) and STATUS.is_file()


def taken(work: Callable[[], object]) -> float:
    """Return the megabytes that this process held at most during `work`, more than before."""
    ctypes.CDLL(None).malloc_trim(0)  # or the work would get what was freed before
    PEAK.write_text("5")
    before = _held("VmRSS")
    work()
    return (_held("VmHWM") - before) / 1e6


def _held(name: str) -> int:
    """Return bytes."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
