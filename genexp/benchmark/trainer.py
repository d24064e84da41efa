"""The trainer with its default recorders against a bare PyTorch loop over the same resident data."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from genexp.benchmark.rounds import Comparison, compete
from genexp.config import config_folder
from genexp.data import load_dataset
from genexp.run import build_run, describe_run, run_recorders
from genexp.snapshot import Outcome, Snapshot
from genexp.stopping import StopRequest
from genexp.trainer import train

STEPS = 1000
PRESET = "stacked_autoencoder_reference"


class _Clocked:
    """Hands snapshots on, and notes when training began and when its last step was recorded."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.marks: list[tuple[int, float]] = []
        self.last_loss = float("nan")

    def record(self, snapshot: Snapshot) -> None:
        """Record a snapshot; the pictures of the end are not the loop's work."""
        if snapshot.finale is None:
            self._inner.record(snapshot)
            self.marks.append((snapshot.clock.step, time.perf_counter()))
        if "loss" in snapshot.train:
            self.last_loss = float(snapshot.train["loss"].values[-1])

    def steps_per_second(self) -> float:
        """Return the speed between the first and the last mark."""
        (first, begun), (last, ended) = self.marks[0], self.marks[-1]
        return (last - first) / (ended - begun)


def run(rounds: int, dataset: str = "mnist_5k") -> list[Comparison]:
    """Measure images/s. Raises AssertionError where the two loops do not compute the same losses."""
    config = _config(dataset)
    batch_size = config["trainer"]["batch_size"]
    losses: dict[str, float] = {}

    def ours() -> float:
        speed, losses["ours"] = _ours(config)
        return speed * batch_size

    def bare() -> float:
        speed, losses["bare"] = _bare(config)
        return speed * batch_size

    ours(), bare()
    assert abs(losses["ours"] - losses["bare"]) < 0.02, f"not the same work: {losses}"
    return compete(f"stacked autoencoder, batch {batch_size}", ours, {"bare PyTorch loop": bare}, rounds=rounds)


def _config(dataset: str) -> dict[str, Any]:
    overrides = [f"experiment={PRESET}", f"dataset={dataset}", f"trainer.max_steps={STEPS}", "device=cpu"]
    overrides += ["trainer.evaluate_every=0", "trainer.preview_every=0"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = OmegaConf.to_container(compose("train", overrides=overrides), resolve=True)
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def _ours(config: dict[str, Any]) -> tuple[float, float]:
    """Return steps/s and the last loss of genexp's trainer with all its recorders."""
    built = build_run(config, None)
    recorders = run_recorders(built.trainer, None)
    with tempfile.TemporaryDirectory() as name:
        recorders.open(describe_run(built, config, Path(name), 0))
        clocked = _Clocked(recorders)
        clock = train(built.learner, built.material, clocked, built.trainer, StopRequest(), seed=built.seed)
        recorders.close(Outcome("stopped", clock.step))
    return clocked.steps_per_second(), clocked.last_loss


def _bare(config: dict[str, Any]) -> tuple[float, float]:
    """Return steps/s and the last loss of the loop one would write by hand, with the fused optimizer."""
    built = build_run(config, None)
    network: Any = built.learner.technique
    optimizer = torch.optim.Adam(network.parameters(), lr=config["optimizer"]["lr"], fused=True)
    images = load_dataset(config["dataset"]).train.streams["image"]
    assert isinstance(images, Tensor)
    return _loop(network.encoder, network.decoder, optimizer, images, config["trainer"]["batch_size"])


def _loop(
    encoder: Callable[[Tensor], Tensor],
    decoder: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    batch_size: int,
) -> tuple[float, float]:
    begun, step, loss = time.perf_counter(), 0, torch.zeros(())
    while step < STEPS:
        for indices in torch.randperm(len(images)).split(batch_size):
            batch = images[indices].float() / 255
            optimizer.zero_grad()
            loss = F.mse_loss(decoder(encoder(batch)).sigmoid(), batch)
            loss.backward()
            optimizer.step()
            step += 1
            if step == STEPS:
                break
    return STEPS / (time.perf_counter() - begun), loss.item()
