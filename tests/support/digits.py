"""Autoencoders trained for a few steps on the 5,000 embedded digits."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from genexp.config import to_plain_config
from genexp.data.dataset import Dataset
from genexp.data.loading import make_loader
from genexp.data.stream import SplitBatches, TrainingBatches
from genexp.seeding import seed_generators
from genexp.technique import Clock
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import plan_optimizers
from genexp.training.trainer import eval_mode
from tests.support.compose import compose_config, make_technique
from tests.support.datasets import load_values


@cache
def load_digits() -> Dataset:
    """Return the 5,000 digits."""
    return load_values({"name": "mnist_5k", "limit": None, "resident_gb": 4.0})


@cache
def mean_image_mse() -> float:
    """Return the test error of the mean training image as the reconstruction of every image."""
    train, test = (split.streams["image"] for split in (load_digits().train, load_digits().test))
    assert isinstance(train, Tensor)
    assert isinstance(test, Tensor)
    return (test / 255 - (train / 255).mean(0)).square().mean().item()


def train_on_digits(name: str, steps: int, *overrides: str) -> Learner:
    """Return a learner after `steps` steps on the digits, at the learning rate of its recipe without decay."""
    config = compose_config(f"model={name}", "optimizer.schedule=constant", *overrides)
    # The string is part of the seed, as in genexp.runs.build.
    seed_generators(CPU, 0, "initialise")
    plan = plan_optimizers(to_plain_config(config)["optimizer"])
    learner = Learner(make_technique(name, (1, 28, 28), f"model={name}", *overrides), plan, StepSettings(), CPU)
    loader = make_loader(load_digits().train, CPU)
    with TrainingBatches(loader, config.trainer.batch_size, seed=0, dataset_name="mnist_5k") as stream:
        batches = stream.iter_batches(1)
        for step in range(1, steps + 1):
            seed_generators(CPU, 0, step)
            learner.step(next(batches), [], Clock(step, steps, stream.steps_per_epoch))
    return learner


def evaluate_on_digits(learner: Learner, seed: int = 0) -> dict[str, float]:
    """Return a learner's scores on 300 test digits."""
    with eval_mode(learner.technique):
        seed_generators(CPU, seed, "evaluate")
        return learner.technique.evaluate(SplitBatches(make_loader(load_digits().test, CPU), 300, limit=300))


CPU = torch.device("cpu")
