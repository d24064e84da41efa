"""Sixteen seeds as one computation, against the same jobs one after the other and side by side under joblib."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from genexp.benchmark import clock
from genexp.benchmark.configuration import configuration
from genexp.benchmark.rounds import Comparison, compete
from genexp.benchmark.watch import watched
from genexp.run import Sitting, build_run
from genexp.snapshot import Outcome, Snapshot
from genexp.stopping import StopRequest
from genexp.vectorized.loop import train_together
from genexp.vectorized.rows import Row

SEEDS = 16
STEPS = 301  # of each job; its last block is not counted, since the pictures of the end follow it
BATCHES = (16, 50)
ALWAYS = ("experiment=stacked_autoencoder_reference", "dataset=mnist_5k", "device=cpu")
BLIND = ("trainer.evaluate_every=0", "trainer.preview_every=0", "trainer.checkpoint_every=0")
ROUNDING = 0.02  # of a loss, by which the last of both ways may differ
Config = dict[str, Any]


def run(rounds: int) -> list[Comparison]:
    """Measure steps of single jobs a second. Raises AssertionError where losses differ."""
    rows = []
    for batch_size in BATCHES:
        words = (*ALWAYS, *BLIND, f"trainer.max_steps={STEPS}", f"trainer.batch_size={batch_size}")
        configs = [configuration(*words, f"seed={seed}") for seed in range(SEEDS)]
        _check(configs)
        rows += compete(
            f"{SEEDS} seeds of the stacked autoencoder, batch {batch_size}",
            lambda configs=configs: _together(configs)[0],  # type: ignore[misc]
            {
                "one after the other": lambda configs=configs: _in_turn(configs),  # type: ignore[misc]
                "joblib on all cores": lambda configs=configs: _joblib(configs),  # type: ignore[misc]
            },
            rounds=rounds,
            unit="steps/s",
        )
    return rows


def _check(configs: Sequence[Config]) -> None:
    _, losses = _together(configs)
    for config, loss in zip(configs[:2], losses, strict=False):
        snapshots = [snapshot for snapshot in watched(config).snapshots if "loss" in snapshot.train]
        alone = float(snapshots[-1].train["loss"].values[-1])
        assert abs(alone - loss) <= ROUNDING * alone, f"not the same work: {loss} as one, {alone} alone"


def _in_turn(configs: Sequence[Config]) -> float:
    seconds = [watched(config).seconds for config in configs]
    return STEPS * len(configs) / sum(seconds)


def _joblib(configs: Sequence[Config]) -> float:
    """Return what as many workers as cores do together, each with one thread: none waits for another to end."""
    import joblib

    workers = joblib.cpu_count()
    seconds = joblib.Parallel(workers)(joblib.delayed(_worker)(config, clock.chosen()) for config in configs)
    return STEPS * len(configs) * workers / sum(seconds)


def _worker(config: Config, clock_name: str) -> float:
    torch.set_num_threads(1)
    clock.choose(clock_name)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return watched(config).seconds


class _Marks:
    """A row's recorders; notes when each snapshot was recorded."""

    def __init__(self, recorders: Any) -> None:
        self._recorders = recorders
        self.step = 0
        self.marks: list[tuple[int, float]] = []
        self.loss = float("nan")

    def record(self, snapshot: Snapshot) -> None:
        """Record a snapshot."""
        self._recorders.record(snapshot)
        self.step = snapshot.clock.step
        if "loss" in snapshot.train:
            self.loss = float(snapshot.train["loss"].values[-1])
        if snapshot.finale is None:
            self.marks.append((snapshot.clock.step, clock.now()))

    def close(self, outcome: Outcome) -> None:
        """Close the recorders."""
        self._recorders.close(outcome)


class _Watched(Row):
    """A row whose recorders are watched."""

    def open(self) -> None:
        """Begin to write to the folder."""
        super().open()
        self.recorders = _Marks(self.recorders)


def _together(configs: Sequence[Config]) -> tuple[float, list[float]]:
    """Return steps of single jobs a second, and the last losses."""
    rows: list[_Watched] = []
    with tempfile.TemporaryDirectory() as name:
        for number, config in enumerate(configs):
            built = build_run(config, None, like=rows[0].built if rows else None)
            rows.append(_Watched(number, Sitting(built, config, _folder(name, number), None), ExitStack()))
        train_together(rows, StopRequest())
    (begun, start), *_, (ended, end) = rows[-1].recorders.marks
    return (ended - begun) * len(configs) / (end - start), [row.recorders.loss for row in rows]


def _folder(parent: str, number: int) -> Path:
    folder = Path(parent) / str(number)
    folder.mkdir()
    return folder
