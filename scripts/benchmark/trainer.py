"""The trainer with its default recorders against a bare loop, the tutorials' loop, and Lightning."""

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
from benchmark.clock import now
from benchmark.compose import configuration
from benchmark.paired_rounds import Comparison, alone, compete
from benchmark.reference_loops import Player
from benchmark.step_timer import watched
from genexp.data import load_dataset
from genexp.images.vision import torchvision
from genexp.runs.build import Run, build_run
from genexp.seeding import seed_generators
from genexp.technique import Clock, Descent
from genexp.training.learner import chosen_precision

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """What is trained, for how long in a round, and the same written by hand."""

    preset: str
    batch_size: int
    steps: int
    players: Callable[[Any, float], list[Player]]


WORKS = {
    "stacked autoencoder": Work("stacked_autoencoder_reference", 50, 1000, reference_loops.autoencoder),
    "VAE": Work("vae_reference", 100, 400, reference_loops.vae),
    "convolutional autoencoder": Work("conv_autoencoder_reference", 128, 150, reference_loops.autoencoder),
    "GAN": Work("gan_reference", 100, 100, reference_loops.gan),
    "DCGAN": Work("dcgan_reference", 100, 12, reference_loops.gan),
}


def run(rounds: int, works: tuple[str, ...] = tuple(WORKS)) -> list[Comparison]:
    """Measure images/s. Raises AssertionError where hand and program do not compute the same losses."""
    rows = []
    entries = [(name, WORKS[name], precision) for name in works for precision in precisions(WORKS[name])]
    for name, work, precision in entries:
        config = configured(work, f"trainer.precision={precision}")
        alone(partial(check, config, work))
        rivals = {
            "bare loop, fused optimizer": partial(_bare, config, work),
            "tutorial loop": partial(_tutorial, config, work),
            "Lightning": partial(_lightning, config, work),
        }
        task = f"{name}, batch {work.batch_size}, {precision}"
        rows += compete(task, partial(_ours, config, work), rivals, rounds=rounds)
    return rows


def configured(work: Work, *words: str) -> dict[str, Any]:
    """Return the configuration of `work` on the command line, and of `words`."""
    overrides = [f"experiment={work.preset}", "dataset=mnist_5k", "device=cpu"]
    overrides += [f"trainer.batch_size={work.batch_size}", f"trainer.max_steps={work.steps}"]
    overrides += ["trainer.evaluate_every=0", "trainer.preview_every=0"]
    return configuration(*overrides, *words)


def precisions(work: Work) -> list[str]:
    """Return fp32, and what the model's recipe chooses on this processor."""
    own = configured(work)["model"]["recipe"].get("precision", "fp32")
    return list(dict.fromkeys(["fp32", chosen_precision(own, CPU)]))


def check(config: dict[str, Any], work: Work) -> None:
    """Compare the losses of each phase on one batch, with the same weights and the same noise."""
    built, players = _build(config, work)
    batch = next(iter(built.material.feed.batches(1)))
    clock = Clock(1, work.steps, built.material.feed.steps_per_epoch)
    phases = [phase for phase in built.learner.phases if isinstance(phase, Descent)]
    for phase, player in zip(phases, players, strict=True):
        seed_generators(CPU, 0)
        ours = phase.loss(batch, clock)[0].item()
        seed_generators(CPU, 0)
        theirs = player.loss(batch["image"]).item()
        assert abs(ours - theirs) < 1e-4 * abs(theirs), f"{phase.name}: not the same work: {ours} and {theirs}"


def _build(config: dict[str, Any], work: Work) -> tuple[Run, list[Player]]:
    built = build_run(config, None)
    return built, work.players(built.learner.technique, config["optimizer"]["lr"])


def _by_hand(config: dict[str, Any], work: Work) -> list[Player]:
    built, players = _build(config, work)
    reference_loops.as_written(built.learner.technique)
    return players


def _images(config: dict[str, Any]) -> Tensor:
    images = load_dataset(config["dataset"]).train.streams["image"]
    assert isinstance(images, Tensor)
    return images


def _ours(config: dict[str, Any], work: Work) -> float:
    """Return the images/s of genexp's trainer with all its recorders."""
    return work.steps * work.batch_size / watched(config).seconds


def _bare(config: dict[str, Any], work: Work) -> float:
    """Return the images/s of the loop one would write by hand over data in memory."""
    players = _by_hand(config, work)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(player.network.parameters(), lr=player.lr, fused=True) for player in players
    ]
    images = _images(config)
    begun, done = now(), 0
    while done < work.steps:
        for indices in torch.randperm(len(images)).split(work.batch_size)[: work.steps - done]:
            if len(indices) == work.batch_size:
                reference_loops.step(players, optimizers, images[indices].float() / 255)
                done += 1
    return work.steps * work.batch_size / (now() - begun)


class _Pictures(Dataset[Any]):
    """Images as torchvision's MNIST gives them out: each one a Pillow image that a transform makes a tensor."""

    def __init__(self, images: Tensor) -> None:
        self._images = images.squeeze(1)
        self._transform = torchvision.transforms.ToTensor()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index].numpy())), 0


def _tutorial(config: dict[str, Any], work: Work) -> float:
    """Return the images/s of the tutorials' loop: a DataLoader, and every loss read at every step."""
    players = _by_hand(config, work)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(player.network.parameters(), lr=player.lr) for player in players
    ]
    loader = DataLoader(_Pictures(_images(config)), batch_size=work.batch_size, shuffle=True, drop_last=True)
    curve: list[list[float]] = []
    begun = now()
    while len(curve) < work.steps:
        for images, _ in loader:
            curve.append([loss.item() for loss in reference_loops.step(players, optimizers, images)])
            if len(curve) == work.steps:
                break
    return work.steps * work.batch_size / (now() - begun)


def _lightning(config: dict[str, Any], work: Work) -> float:
    """Return the images/s of Lightning's Trainer with its defaults, over the same data in memory."""
    from benchmark.lightning import lightning_speed

    players = _by_hand(config, work)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lightning_speed(players, _images(config), work.batch_size, work.steps, Path(folder))
