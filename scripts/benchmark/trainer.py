"""Trainer with its default recorders against a bare loop, the tutorials' loop, and Lightning."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmark import reference_loops
from benchmark.clock import read_seconds
from benchmark.compose import compose_config, load_composed_dataset
from benchmark.paired_rounds import PairedComparison, run_in_thread, run_paired_rounds
from benchmark.reference_loops import ReferencePhase
from benchmark.step_timer import time_run
from genexp.images.vision import torchvision
from genexp.runs.build import Run, build_run
from genexp.runs.config import bind_experiment
from genexp.seeding import seed_generators
from genexp.technique import Clock, GradientPhase
from genexp.training.learner import resolve_precision

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainingTask:
    """A preset, the length of its training in one round, and its hand-written reference."""

    preset: str  # name in conf/experiment
    batch_size: int
    steps: int
    build_phases: Callable[[Any, float], list[ReferencePhase]]  # technique, learning rate → phases


TASKS = {
    "stacked autoencoder": TrainingTask(
        "stacked_autoencoder_reference", 50, 1000, reference_loops.build_autoencoder_phases
    ),
    "VAE": TrainingTask("vae_reference", 100, 400, reference_loops.build_vae_phases),
    "convolutional autoencoder": TrainingTask(
        "conv_autoencoder_reference", 128, 150, reference_loops.build_autoencoder_phases
    ),
    "GAN": TrainingTask("gan_reference", 100, 100, reference_loops.build_gan_phases),
    "DCGAN": TrainingTask("dcgan_reference", 100, 12, reference_loops.build_gan_phases),
}


def run(rounds: int, tasks: tuple[str, ...] = tuple(TASKS)) -> list[PairedComparison]:
    """Measure images/s. Raises AssertionError if genexp and the reference compute different losses."""
    rows = []
    entries = [(name, TASKS[name], precision) for name in tasks for precision in list_precisions(TASKS[name])]
    for name, task, precision in entries:
        config = compose_task_config(task, f"trainer.precision={precision}")
        run_in_thread(partial(check_losses, config, task))
        rivals = {
            "bare loop, fused optimizer": partial(_measure_bare_loop, config, task),
            "tutorial loop": partial(_measure_tutorial_loop, config, task),
            "Lightning": partial(_measure_lightning, config, task),
        }
        label = f"{name}, batch {task.batch_size}, {precision}"
        rows += run_paired_rounds(label, partial(_measure_genexp, config, task), rivals, rounds=rounds)
    return rows


def compose_task_config(task: TrainingTask, *extra_overrides: str) -> dict[str, Any]:
    """Return the configuration of `task`, with `extra_overrides`."""
    overrides = [f"experiment={task.preset}", "dataset=mnist_5k", "device=cpu"]
    overrides += [f"trainer.batch_size={task.batch_size}", f"trainer.max_steps={task.steps}"]
    overrides += ["trainer.evaluate_every=0", "trainer.preview_every=0"]
    return compose_config(*overrides, *extra_overrides)


def list_precisions(task: TrainingTask) -> list[str]:
    """Return "fp32", and the precision of the model's recipe on this processor if it differs."""
    recipe_precision = compose_task_config(task)["model"].get("recipe", {}).get("precision", "fp32")
    return list(dict.fromkeys(["fp32", resolve_precision(recipe_precision, CPU)]))


def check_losses(config: dict[str, Any], task: TrainingTask) -> None:
    """Compare the losses of each phase with equal batch, weights and noise. Raises AssertionError."""
    run, reference_phases = build_run_and_reference(config, task)
    batch = next(iter(run.data.batch_source.iter_batches(1)))
    clock = Clock(1, task.steps, run.data.batch_source.steps_per_epoch)
    phases = [phase for phase in run.learner.phases if isinstance(phase, GradientPhase)]
    for phase, reference_phase in zip(phases, reference_phases, strict=True):
        seed_generators(CPU, 0)
        ours = phase.loss(batch, clock)[0].item()
        seed_generators(CPU, 0)
        theirs = reference_phase.loss(batch["image"]).item()
        assert abs(ours - theirs) < 1e-4 * abs(theirs), f"{phase.name}: not the same work: {ours} and {theirs}"


def build_run_and_reference(config: dict[str, Any], task: TrainingTask) -> tuple[Run, list[ReferencePhase]]:
    """Return the run of a configuration, and the phases of the hand-written loop on the same networks."""
    run = build_run(bind_experiment(config), None)
    return run, task.build_phases(run.learner.technique, config["optimizer"]["lr"])


def _build_reference_phases(config: dict[str, Any], task: TrainingTask) -> list[ReferencePhase]:
    run, phases = build_run_and_reference(config, task)
    reference_loops.remove_optimizations(run.learner.technique)
    return phases


def load_images(config: dict[str, Any]) -> Tensor:
    """Return the training images of a configuration: uint8 (images, channels, height, width)."""
    images = load_composed_dataset(config).train.streams["image"]
    assert isinstance(images, Tensor)
    return images


def _measure_genexp(config: dict[str, Any], task: TrainingTask) -> float:
    """Return the images/s of genexp's trainer with its default recorders."""
    return task.steps * task.batch_size / time_run(config).seconds


def _measure_bare_loop(config: dict[str, Any], task: TrainingTask) -> float:
    """Return the images/s of a hand-written loop over data in memory, with a fused optimizer."""
    phases = _build_reference_phases(config, task)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(phase.network.parameters(), lr=phase.lr, fused=True) for phase in phases
    ]
    images = load_images(config)
    started_at, step_count = read_seconds(), 0
    while step_count < task.steps:
        for indices in torch.randperm(len(images)).split(task.batch_size)[: task.steps - step_count]:
            if len(indices) == task.batch_size:
                reference_loops.step(phases, optimizers, images[indices].float() / 255)
                step_count += 1
    return task.steps * task.batch_size / (read_seconds() - started_at)


class _PillowImages(Dataset[Any]):
    """Dataset like torchvision's MNIST: each item is a Pillow image that a transform turns into a tensor."""

    def __init__(self, images: Tensor) -> None:
        self._images = images.squeeze(1)
        self._transform = torchvision.transforms.ToTensor()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index].numpy())), 0


def _measure_tutorial_loop(config: dict[str, Any], task: TrainingTask) -> float:
    """Return the images/s of the tutorials' loop: a DataLoader, and `item()` of each loss at every step."""
    phases = _build_reference_phases(config, task)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(phase.network.parameters(), lr=phase.lr) for phase in phases
    ]
    loader = DataLoader(
        _PillowImages(load_images(config)), batch_size=task.batch_size, shuffle=True, drop_last=True
    )
    losses: list[list[float]] = []
    started_at = read_seconds()
    while len(losses) < task.steps:
        for images, _ in loader:
            losses.append([loss.item() for loss in reference_loops.step(phases, optimizers, images)])
            if len(losses) == task.steps:
                break
    return task.steps * task.batch_size / (read_seconds() - started_at)


def _measure_lightning(config: dict[str, Any], task: TrainingTask) -> float:
    """Return the images/s of Lightning's Trainer with its defaults, over data in memory."""
    from benchmark.lightning import measure_lightning

    phases = _build_reference_phases(config, task)
    with tempfile.TemporaryDirectory() as root_dir, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure_lightning(phases, load_images(config), task.batch_size, task.steps, Path(root_dir))
