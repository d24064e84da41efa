"""Initialized runs, and their training as an ensemble."""

from __future__ import annotations

from typing import Any

import torch

from genexp.ensemble.step import EnsembleStep
from genexp.runs.build import Run, build_run
from genexp.technique import Clock
from genexp.training.trainer import initialize_technique
from tests.support.compose import compose_experiment

STEPS = 50


def build_initialized_run(*overrides: str, data_from: Run | None = None) -> Run:
    """Return a run before its first step. The data set is shared with `data_from`."""
    train_only = ("trainer.evaluate_every=0", "trainer.preview_every=0")
    run = build_run(compose_experiment(*overrides, *train_only), None, data_source_run=data_from)
    initialize_technique(run.learner, run.data.train_batches, run.config.seed)
    return run


def train_as_ensemble(runs: list[Run], steps: int = STEPS) -> list[dict[str, Any]]:
    """Return the states of runs after `steps` steps as an ensemble."""
    ensemble_step = EnsembleStep([run.learner for run in runs], [run.config.seed for run in runs])
    batch_streams = [run.data.batch_source.iter_batches(1) for run in runs]
    for step in range(1, steps + 1):
        batches = [next(batch_stream) for batch_stream in batch_streams]
        batch = {name: torch.stack([part[name] for part in batches]) for name in batches[0]}
        clock = Clock(step, steps, runs[0].data.batch_source.steps_per_epoch)
        ensemble_step.step(batch, False, runs[0].data.train_batches, clock)
    ensemble_step.update_members()
    return [run.learner.state_dict() for run in runs]
