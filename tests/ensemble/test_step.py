"""One step of an ensemble: equality of each member with its single run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from genexp.ensemble.step import EnsembleStep, clip_grad_norm_per_member
from genexp.runs.build import Run
from genexp.seeding import seed_generators
from genexp.technique import Clock
from genexp.training.learner import Learner
from tests.support.assertions import assert_close_to_scale
from tests.support.compose import compose_config, make_tiny_overrides
from tests.support.ensembles import STEPS, build_initialized_run, train_as_ensemble

# Model hyperparameters that differ between members, besides seed and learning rate.
VARYING_KEYS = {
    "stacked_autoencoder": [],
    "latent3d_autoencoder": [],
    "conv_autoencoder": [],
    "denoising_autoencoder": ["model.noise"],
    "conv_denoising_autoencoder": ["model.noise"],
    "vae": ["model.beta", "model.free_bits"],
    "flow_matching": ["model.label_dropout"],
    "vq_vae": ["model.commitment", "model.decay"],
    "gan": ["model.dropout"],
    "dcgan": ["model.r1", "model.r2"],
    "cgan": [],
    "wgan_gp": ["model.penalty"],
    "deep_kmeans": ["model.alpha", "model.degrees"],
    "kmeans": ["model.tolerance"],
}
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train_alone(run: Run, steps: int = STEPS) -> dict[str, Any]:
    """Return the state of a run after `steps` steps."""
    batches = run.data.batch_source.iter_batches(1)
    for step in range(1, steps + 1):
        seed_generators(run.learner.device, run.config.seed, step)
        run.learner.step(
            next(batches), run.data.train_batches, Clock(step, steps, run.data.batch_source.steps_per_epoch)
        )
    return copy.deepcopy(run.learner.state_dict())


def member_overrides(name: str) -> list[list[str]]:
    """Return the overrides of two runs that differ in float hyperparameters."""
    lr = compose_config(f"model={name}").optimizer.lr
    small = {
        "gan": ["model.hidden=[16,32]"],
        "vae": ["model.hidden=[32,16]"],
        "deep_kmeans": ["model.pull=sharpened"],  # the fit of the neighbor classifier amplifies rounding
        "flow_matching": ["model.optimal_transport=true"],
        "dcgan": [
            "model.discriminator_norm=none",
            "model.loss=relativistic",
            "model.augmentation=[color,translation,cutout]",
        ],
    }.get(name, [])
    small += ["dataset=digits"] if "gan" in name or name == "flow_matching" else []  # images of 8×8 pixels
    return [
        [
            *make_tiny_overrides(name),
            *small,
            f"seed={seed}",
            f"optimizer.lr={factor * lr}",
            *(f"{key}={number}" for key in VARYING_KEYS[name]),
        ]
        for seed, factor, number in ((1, 1, 0.1), (2, 0.5, 0.2))
    ]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", sorted(VARYING_KEYS))
def test_ensemble_member_equals_the_single_run(name: str) -> None:
    """Weights, buffers, EMA and optimizer state are equal after fifty steps in float64."""
    overrides = member_overrides(name)
    expected = [train_alone(build_initialized_run(*each)) for each in overrides]
    first = build_initialized_run(*overrides[0])
    found = train_as_ensemble([first, build_initialized_run(*overrides[1], data_from=first)])
    for member, run in zip(found, expected, strict=True):
        # The gradient of a bias before batch normalization is rounding error, which Adam scales to full steps. The
        # two passes of the contrastive loss double it.
        assert_close_to_scale(member, run, 1e-6 if name == "deep_kmeans" else 1e-7)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "options",
    [
        ["model.pixels=drawn", "model.importance_samples=3", "model.free_bits=0"],
        ["model.network=resnet", "model.channels=[2]", "model.likelihood=gaussian", "model.total_correlation=4"],
        ["model.pixels=fixed", "model.network=conv", "model.channels=[2]"],
    ],
    ids=lambda options: options[0],
)
def test_ensemble_of_vae_options_equals_single_runs(options: list[str]) -> None:
    overrides = [[*each, *options] for each in member_overrides("vae")]
    expected = [train_alone(build_initialized_run(*each), 5) for each in overrides]
    first = build_initialized_run(*overrides[0])
    found = train_as_ensemble([first, build_initialized_run(*overrides[1], data_from=first)], 5)
    for member, run in zip(found, expected, strict=True):
        assert_close_to_scale(member, run, 1e-7)


def test_ensemble_member_is_close_to_the_single_run_in_float32() -> None:
    overrides = [[*each, "trainer.precision=fp32"] for each in member_overrides("vae")]
    expected = [train_alone(build_initialized_run(*each)) for each in overrides]
    first = build_initialized_run(*overrides[0])
    for member, run in zip(
        train_as_ensemble([first, build_initialized_run(*overrides[1], data_from=first)]), expected, strict=True
    ):
        assert_close_to_scale(member["technique"], run["technique"], 1e-3)


def test_ensemble_uses_the_matmul_precision_of_single_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True})
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    seen: list[str] = []

    def record_precision(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **overrides: Any) -> Any:
            seen.append(matmul.fp32_precision)
            return function(*arguments, **overrides)

        return call

    monkeypatch.setattr(EnsembleStep, "compute_losses", record_precision(EnsembleStep.compute_losses))
    monkeypatch.setattr(torch.Tensor, "backward", record_precision(torch.Tensor.backward))
    words = [[*each, "trainer.precision=bf32"] for each in member_overrides("vae")]
    first = build_initialized_run(*words[0])
    train_as_ensemble([first, build_initialized_run(*words[1], data_from=first)], steps=1)
    assert seen == ["bf16", "bf16"]
    assert matmul.fp32_precision != "bf16"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "overrides",
    [
        (
            ["optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9"],
            ["optimizer=sgd", "optimizer.lr=0.01", "optimizer.momentum=0.0"],
        ),
        (
            ["optimizer=rmsprop", "optimizer.weight_decay=0.0"],
            ["optimizer=rmsprop", "optimizer.weight_decay=0.1"],
        ),
        (["optimizer=adadelta"], ["optimizer=adadelta"]),
        (
            ["optimizer=adamw", "optimizer.betas=[0.9,0.99]", "optimizer.schedule=linear"],
            ["optimizer=adamw", "optimizer.betas=[0.5,0.9]", "optimizer.schedule=constant"],
        ),
        (["trainer.gradient_clip=0.01", "trainer.ema=0.9"], ["trainer.gradient_clip=0.01", "trainer.ema=0.9"]),
    ],
    ids=[f"overrides{number}" for number in range(5)],
)
def test_every_elementwise_optimizer_matches_single_runs(overrides: tuple[list[str], list[str]]) -> None:
    runs = [[*make_tiny_overrides("stacked_autoencoder"), f"seed={seed}", *overrides[seed]] for seed in (0, 1)]
    expected = [train_alone(build_initialized_run(*run), 10) for run in runs]
    first = build_initialized_run(*runs[0])
    for state, expected_state in zip(
        train_as_ensemble([first, build_initialized_run(*runs[1], data_from=first)], 10), expected, strict=True
    ):
        assert_close_to_scale(state, expected_state, 1e-10)


@pytest.mark.usefixtures("float64")
def test_ensemble_can_be_rebuilt_from_a_subset_of_members() -> None:
    overrides = [[*make_tiny_overrides("gan"), f"seed={seed}"] for seed in (1, 2, 3)]
    expected = [train_alone(build_initialized_run(*each), 8) for each in overrides]
    runs = [build_initialized_run(*each) for each in overrides]
    batches = [run.data.batch_source.iter_batches(1) for run in runs]
    for first, last, members in ((1, 4, [0, 1, 2]), (5, 8, [0, 2])):
        ensemble_step = EnsembleStep(
            [runs[member].learner for member in members], [runs[row].config.seed for row in members]
        )
        for step in range(first, last + 1):
            parts = [next(batches[row]) for row in members]
            batch = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
            clock = Clock(step, 8, runs[0].data.batch_source.steps_per_epoch)
            ensemble_step.step(batch, False, runs[0].data.train_batches, clock)
        ensemble_step.update_members()
    for row in (0, 2):
        assert_close_to_scale(runs[row].learner.state_dict(), expected[row], 1e-9)


def test_gradients_are_clipped_per_member() -> None:
    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0]]), torch.tensor([[4.0], [0.4]])]
    assert clip_grad_norm_per_member(gradients, 1.0).tolist() == pytest.approx([5.0, 0.5])
    assert gradients[0].tolist() == [pytest.approx([0.6, 0.0]), pytest.approx([0.3, 0.0])]
    assert gradients[1].flatten().tolist() == pytest.approx([0.8, 0.4])


def test_learners_stay_usable_after_stacking() -> None:
    """The weights of a learner are views of the stacked weights, so that reading them needs no copy."""
    runs = [build_initialized_run(*make_tiny_overrides("stacked_autoencoder"), f"seed={seed}") for seed in (0, 1)]
    before = [next(learner.technique.parameters()).detach().clone() for learner in get_learners(runs)]
    train_as_ensemble(runs, 1)
    for learner, weight in zip(get_learners(runs), before, strict=True):
        assert not torch.equal(next(learner.technique.parameters()), weight)


def get_learners(runs: list[Run]) -> list[Learner]:
    return [run.learner for run in runs]
