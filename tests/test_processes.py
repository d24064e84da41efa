"""One run over several processes computes what one process computes, and ends as a run ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_contract import composed, tiny

from genexp.processes.board import Task
from genexp.processes.gathering import Gathering, gathering
from genexp.processes.place import Place
from genexp.run import build_run
from genexp.snapshot import Snapshot
from genexp.stopping import StopRequest
from genexp.trainer import train

STEPS = 6
BLIND = ("trainer.evaluate_every=0", "trainer.preview_every=0", "trainer.checkpoint_every=0")
ALONE = Gathering(Place(), 1)


@pytest.fixture(scope="module")
def pair() -> Iterator[Gathering]:
    """Return this process and one that follows it through all runs of this file."""
    with gathering(Place(processes=2, local_processes=2), threads=1) as both:
        yield both


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Compute in float64, where what is equal can be seen."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Curves:
    """The training metrics of a run."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def record(self, snapshot: Snapshot) -> None:
        for name, curve in snapshot.train.items():
            self.values.setdefault(name, []).extend(curve.values.tolist())


def learnt(team: Gathering, *words: str) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the training metrics and the last state of a run of a few steps."""
    config = OmegaConf.to_container(composed(*words, *BLIND, f"trainer.max_steps={STEPS}"), resolve=True)
    assert isinstance(config, dict)
    plain = {str(key): value for key, value in config.items()}
    built, curves = build_run(plain, None, team.place), Curves()
    with (
        closing(built.material.feed),
        team.at_work(Task(plain, 0, "float64"), built.learner.device, "") as all_of_us,
    ):
        train(built.learner, built.material, curves, built.trainer, StopRequest(), seed=0, team=all_of_us)
    return curves.values, built.learner.state()


def assert_close(left: Any, right: Any, where: str = "state") -> None:
    """Assert that two nested values are equal but for rounding in float64."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_close(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_close(*pair, f"{where}[{index}]")
    elif isinstance(left, torch.Tensor):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-9, msg=lambda text: f"{where}: {text}")
    else:
        assert left == (pytest.approx(right) if isinstance(right, float) else right), where


RUNS = {
    "an autoencoder": tiny("stacked_autoencoder"),
    "noise": tiny("denoising_autoencoder"),
    "the VAE": tiny("vae"),
    "free bits": [*tiny("vae"), "model.free_bits=0.5"],
    "a GAN with dropout": [*tiny("gan"), "model.dropout=0.3"],
    "batch norm in two players": [*tiny("dcgan"), "model.discriminator_norm=batch"],
    "a gradient penalty": [*tiny("wgan_gp"), "model.critic_steps=2"],
    "batch norm": tiny("conv_denoising_autoencoder"),
    "k-means": tiny("kmeans"),
    "k-means on batches": [*tiny("kmeans"), "trainer.batch_size=8"],
    "deep k-means": tiny("deep_kmeans"),
    "a history of images": [*tiny("cyclegan"), "model.history=6"],
    "translation": tiny("pix2pix"),
    "L-BFGS": [*tiny("stacked_autoencoder"), "optimizer=lbfgs"],
    "an average": [*tiny("vae"), "trainer.ema=0.9", "trainer.gradient_clip=0.1"],
}


@pytest.mark.parametrize("what", RUNS)
def test_two_processes_compute_what_one_does(what: str, pair: Gathering) -> None:
    (curves, state), (shared_curves, shared_state) = learnt(ALONE, *RUNS[what]), learnt(pair, *RUNS[what])
    assert curves.keys() == shared_curves.keys()
    for name, values in curves.items():
        assert values == pytest.approx(shared_curves[name], rel=1e-6, abs=1e-9), name
    assert_close(state, shared_state)
