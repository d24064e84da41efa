"""Time, memory and disk space of a whole process, started like a command that a user types."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.005  # between two checks for the log
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


@dataclass(frozen=True)
class ProcessUsage:
    """What a process used from its start to its end."""

    wall: float  # seconds
    processor: float  # seconds of user and system time, child processes that ended included
    peak_mb: float  # resident memory at its peak, in 10⁶ bytes
    disk_mb: float  # files that it left in its directory, in 10⁶ bytes
    wall_after_start: float | None = None  # seconds from the first line of the log to the end
    processor_after_start: float | None = None  # the same in seconds of processor time


def run_process(command: Sequence[str], directory: Path, log: Path | None = None) -> ProcessUsage:
    """Run `command` in the empty `directory` until it ends, and return what it used.

    `log` is a file whose first line ends the start of the process. Raises AssertionError, with the end of the
    output, if the process fails.
    """
    output = directory.with_suffix(".output")
    started_at, log_wall, log_processor = time.perf_counter(), None, None
    with output.open("wb") as stream:
        process = subprocess.Popen(command, cwd=directory, stdout=stream, stderr=subprocess.STDOUT)
    pid = 0
    while log is not None and log_wall is None and pid == 0:
        if log.is_file() and log.stat().st_size:
            log_wall, log_processor = time.perf_counter() - started_at, _read_processor_seconds(process.pid)
        else:
            time.sleep(POLL_SECONDS)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        pid, status, usage = os.wait4(process.pid, 0)
    wall, processor = time.perf_counter() - started_at, usage.ru_utime + usage.ru_stime
    process.returncode = os.waitstatus_to_exitcode(status)  # otherwise Popen would wait for it again
    assert process.returncode == 0, f"{' '.join(command)} failed: {output.read_text()[-2000:]}"
    return ProcessUsage(
        wall,
        processor,
        usage.ru_maxrss * MAXRSS_BYTES / 1e6,
        sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6,
        None if log_wall is None else wall - log_wall,
        None if log_processor is None else processor - log_processor,
    )


def _read_processor_seconds(pid: int) -> float | None:
    """Return the processor time of all threads of a running process, or None without /proc."""
    path = Path(f"/proc/{pid}/stat")
    if not path.is_file():
        return None
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
