"""How long a command takes until it helps or trains, against an interpreter that imports torch and no more."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmark.clock import chosen, now
from benchmark.paired_rounds import Comparison, compete

TORCH = (sys.executable, "-c", "import torch")
GENEXP = (sys.executable, "-m", "genexp.train")
LOOK_EVERY = 0.005  # seconds


def run(rounds: int) -> list[Comparison]:
    """Measure seconds. Raises AssertionError where a command fails."""
    help_against = {"import torch": partial(_seconds, *TORCH)}
    rows = compete("genexp --help", partial(_seconds, *GENEXP, "--help"), help_against, rounds=rounds, unit="s")
    return rows + compete(
        "genexp, first steps recorded", _seconds_to_first_steps, help_against, rounds=rounds, unit="s"
    )


def _now() -> float:
    """Return seconds on the clock that was chosen; of the processor's time, what commands have spent."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now() if chosen() == "wall" else spent.ru_utime + spent.ru_stime


def _seconds(*command: str) -> float:
    begun = _now()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return _now() - begun


def _seconds_to_first_steps() -> float:
    """Return how long it takes until the metrics of the first steps are on disk: a few steps late, never early."""
    with tempfile.TemporaryDirectory() as name:
        words = (*GENEXP, "device=cpu", f"hydra.run.dir={name}")
        begun = _now()
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                while not _has_lines(Path(name) / "metrics.jsonl"):
                    assert process.poll() is None, "genexp ended before its first step"
                    time.sleep(LOOK_EVERY)
                ended = _now()
            finally:
                process.kill()
        return (ended if chosen() == "wall" else _now()) - begun


def _has_lines(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
