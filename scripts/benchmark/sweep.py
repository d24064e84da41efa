"""Sixteen seeds as one computation, against the same jobs one after the other and side by side under joblib.

What is measured is steps with their batches. What a run records costs the same either way, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmark import clock
from benchmark.compose import configuration
from benchmark.paired_rounds import Comparison, alone, compete
from genexp.data.stream import BatchStream, stack_batches
from genexp.ensemble.step import EnsembleStep
from genexp.runs.build import Run, build_run
from genexp.seeding import seed_generators
from genexp.technique import Clock

SEEDS = 16
TIMED = 4  # of the jobs, one after the other: they are alike
STEPS = 60
WARM = 3  # steps that nobody counts
BATCHES = (16, 50)
PRESET = ("experiment=stacked_autoencoder_reference", "dataset=mnist_5k", "device=cpu")
ROUNDING = 1e-3  # of a loss, by which the last of both ways may differ
Config = dict[str, Any]


def run(rounds: int) -> list[Comparison]:
    """Measure steps of single jobs a second. Raises AssertionError where losses differ."""
    rows = []
    for batch_size in BATCHES:
        configs = [configuration(*PRESET, f"trainer.batch_size={batch_size}", f"seed={n}") for n in range(SEEDS)]
        alone(partial(_check, configs))
        rows += compete(
            f"{SEEDS} seeds of the stacked autoencoder, batch {batch_size}",
            partial(_speed_together, configs),
            {
                "one after the other": partial(_speed_in_turn, configs),
                "joblib on all cores": partial(_speed_of_joblib, configs),
            },
            rounds=rounds,
            unit="steps/s",
        )
    return rows


def _check(configs: Sequence[Config]) -> None:
    _, losses = _together(configs)
    for config, loss in zip(configs[:TIMED], losses, strict=False):
        _, own = _single(build_run(config, None))
        assert abs(own - loss) <= ROUNDING * own, f"not the same work: {loss} as one, {own} alone"


def _speed_together(configs: Sequence[Config]) -> float:
    return STEPS * len(configs) / _together(configs)[0]


def _speed_in_turn(configs: Sequence[Config]) -> float:
    return STEPS * TIMED / sum(_single(build_run(config, None))[0] for config in configs[:TIMED])


def _speed_of_joblib(configs: Sequence[Config]) -> float:
    """Return what as many workers as cores do together, each with one thread."""
    import joblib

    workers = joblib.cpu_count()
    jobs = [joblib.delayed(_in_worker)(config, clock.chosen()) for config in configs[:workers]]
    return sum(STEPS / seconds for seconds in joblib.Parallel(workers)(jobs))


def _in_worker(config: Config, clock_name: str) -> float:
    torch.set_num_threads(1)
    clock.choose(clock_name)
    return _single(build_run(config, None))[0]


def _single(run: Run) -> tuple[float, float]:
    """Return the seconds of a run's steps, and the last loss."""
    batches = run.material.feed.batches(1)
    for step in range(1, WARM + STEPS + 1):
        if step == WARM + 1:
            begun = clock.now()
        batch = next(batches)
        seed_generators(run.learner.device, run.seed, step)
        metrics = run.learner.step(batch, run.material.train, Clock(step, WARM + STEPS, STEPS))
    return clock.now() - begun, float(metrics["loss"])


def _together(configs: Sequence[Config]) -> tuple[float, list[float]]:
    """Return the seconds of the runs' steps as one computation, and the last losses."""
    runs: list[Run] = []
    for config in configs:
        runs.append(build_run(config, None, like=runs[0] if runs else None))
    stack = EnsembleStep([run.learner for run in runs], [run.seed for run in runs])
    batches = stack_batches([feed for run in runs if isinstance(feed := run.material.feed, BatchStream)], 1)
    for step in range(1, WARM + STEPS + 1):
        if step == WARM + 1:
            begun = clock.now()
        batch = next(batches)
        metrics = stack.step(batch, False, runs[0].material.train, Clock(step, WARM + STEPS, STEPS))
    return clock.now() - begun, metrics["loss"].tolist()
