"""An ensemble of sixteen seeds, against the same jobs one after the other and in parallel with joblib.

Steps with their batches are measured. Recording costs the same in all cases and is not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmark import clock
from benchmark.compose import compose_config
from benchmark.paired_rounds import PairedComparison, run_in_thread, run_paired_rounds
from genexp.data.stream import TrainingBatches, stack_batches
from genexp.ensemble.step import EnsembleStep
from genexp.runs.build import Run, build_run
from genexp.runs.config import bind_experiment
from genexp.seeding import seed_generators
from genexp.technique import Clock

SEED_COUNT = 16
SEQUENTIAL_JOB_COUNT = 4  # measured jobs of the sequential contender: all take equally long
STEP_COUNT = 60
WARMUP_STEPS = 8  # not counted; CUDA graphs are captured in them
BATCH_SIZES = (16, 50)
BASE_OVERRIDES = ("experiment=stacked_autoencoder_reference", "dataset=mnist_5k", "device=cpu")
LOSS_TOLERANCE = 1e-3  # largest relative difference of the last losses
Config = dict[str, Any]


def run(rounds: int) -> list[PairedComparison]:
    """Measure steps/s, where one step of one job counts once. Raises AssertionError if losses differ."""
    rows = []
    for batch_size in BATCH_SIZES:
        configs = [
            compose_config(*BASE_OVERRIDES, f"trainer.batch_size={batch_size}", f"seed={n}")
            for n in range(SEED_COUNT)
        ]
        run_in_thread(partial(_check_losses, configs))
        rows += run_paired_rounds(
            f"{SEED_COUNT} seeds of the stacked autoencoder, batch {batch_size}",
            partial(_measure_ensemble, configs),
            {
                "one after the other": partial(_measure_sequential, configs),
                "joblib on all cores": partial(_measure_joblib, configs),
            },
            rounds=rounds,
            unit="steps/s",
        )
    return rows


def _check_losses(configs: Sequence[Config]) -> None:
    _, losses = time_ensemble(configs)
    for config, loss in zip(configs[:SEQUENTIAL_JOB_COUNT], losses, strict=False):
        single_loss = time_single_run(build_run(bind_experiment(config), None))[1]["loss"]
        assert abs(single_loss - loss) <= LOSS_TOLERANCE * single_loss, (
            f"not the same work: {loss} as one, {single_loss} alone"
        )


def _measure_ensemble(configs: Sequence[Config]) -> float:
    return STEP_COUNT * len(configs) / time_ensemble(configs)[0]


def _measure_sequential(configs: Sequence[Config]) -> float:
    return (
        STEP_COUNT
        * SEQUENTIAL_JOB_COUNT
        / sum(
            time_single_run(build_run(bind_experiment(config), None))[0]
            for config in configs[:SEQUENTIAL_JOB_COUNT]
        )
    )


def _measure_joblib(configs: Sequence[Config]) -> float:
    """Return the total steps/s of one single-threaded worker per core."""
    import joblib

    workers = joblib.cpu_count()
    jobs = [joblib.delayed(_time_worker_job)(config, clock.get_selected_clock()) for config in configs[:workers]]
    return sum(STEP_COUNT / seconds for seconds in joblib.Parallel(workers)(jobs))


def _time_worker_job(config: Config, clock_name: str) -> float:
    torch.set_num_threads(1)
    clock.select_clock(clock_name)
    return time_single_run(build_run(bind_experiment(config), None))[0]


def time_single_run(run: Run, steps: int = STEP_COUNT) -> tuple[float, dict[str, float]]:
    """Return the seconds of `steps` steps of a run, and the metrics of the last one."""
    batches = run.data.batch_source.iter_batches(1)
    for step in range(1, WARMUP_STEPS + steps + 1):
        if step == WARMUP_STEPS + 1:
            started_at = clock.read_seconds(run.learner.device)
        batch = next(batches)
        seed_generators(run.learner.device, run.config.seed, step)
        metrics = run.learner.step(batch, run.data.train_batches, Clock(step, WARMUP_STEPS + steps, steps))
    seconds = clock.read_seconds(run.learner.device) - started_at
    return seconds, {name: float(value) for name, value in metrics.items()}


def time_ensemble(configs: Sequence[Config], steps: int = STEP_COUNT) -> tuple[float, list[float]]:
    """Return the seconds of `steps` ensemble steps, and the last loss of each member."""
    runs: list[Run] = []
    for config in configs:
        runs.append(build_run(bind_experiment(config), None, data_source_run=runs[0] if runs else None))
    device = runs[0].learner.device
    ensemble_step = EnsembleStep([run.learner for run in runs], [run.config.seed for run in runs])
    batches = stack_batches(
        [batch_source for run in runs if isinstance(batch_source := run.data.batch_source, TrainingBatches)], 1
    )
    for step in range(1, WARMUP_STEPS + steps + 1):
        if step == WARMUP_STEPS + 1:
            started_at = clock.read_seconds(device)
        batch = next(batches)
        metrics = ensemble_step.step(
            batch, False, runs[0].data.train_batches, Clock(step, WARMUP_STEPS + steps, steps)
        )
    return clock.read_seconds(device) - started_at, metrics["loss"].tolist()
