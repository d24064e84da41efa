"""Start-up time of `genexp --help` and of a training run, against an interpreter that imports torch."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmark.clock import get_selected_clock, read_seconds
from benchmark.paired_rounds import PairedComparison, run_paired_rounds

IMPORT_TORCH_COMMAND = (sys.executable, "-c", "import torch")
GENEXP_COMMAND = (sys.executable, "-m", "genexp.train")
POLL_SECONDS = 0.005  # between two checks for the first metrics


def run(rounds: int) -> list[PairedComparison]:
    """Measure seconds. Raises CalledProcessError or AssertionError if a command fails."""
    rivals = {"import torch": partial(_time_command, *IMPORT_TORCH_COMMAND)}
    rows = run_paired_rounds(
        "genexp --help", partial(_time_command, *GENEXP_COMMAND, "--help"), rivals, rounds=rounds, unit="s"
    )
    return rows + run_paired_rounds(
        "genexp, first steps recorded", _time_to_first_steps, rivals, rounds=rounds, unit="s"
    )


def read_command_seconds() -> float:
    """Return seconds: wall time, or the processor time of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return read_seconds() if get_selected_clock() == "wall" else usage.ru_utime + usage.ru_stime


def _time_command(*command: str) -> float:
    started_at = read_command_seconds()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_command_seconds() - started_at


def _time_to_first_steps() -> float:
    """Return the seconds until the metrics of the first steps are on disk, a few steps after they were taken."""
    with tempfile.TemporaryDirectory() as run_dir:
        command = (*GENEXP_COMMAND, "device=cpu", f"hydra.run.dir={run_dir}")
        started_at = read_command_seconds()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                while not _has_content(Path(run_dir) / "metrics.jsonl"):
                    assert process.poll() is None, "genexp ended before its first step"
                    time.sleep(POLL_SECONDS)
                ended_at = read_command_seconds()
            finally:
                process.kill()
        return (ended_at if get_selected_clock() == "wall" else read_command_seconds()) - started_at


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
