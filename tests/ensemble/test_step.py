"""Many models as one computation: each row is the run that its job would be alone."""

from __future__ import annotations

import copy
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from genexp.ensemble.compatibility import IncompatibleRunsError, VaryingHyperparameters
from genexp.ensemble.random_draws import EnsembleFunctionMode, MemberGenerators
from genexp.ensemble.step import EnsembleStep, clip_grad_norm_per_member
from genexp.run_dir.checkpoint import list_checkpoints
from genexp.runs.build import Run, build_run
from genexp.seeding import seed_generators
from genexp.technique import Clock
from genexp.training.learner import Learner
from genexp.training.trainer import initialize_technique
from tests.support.assertions import assert_close_to_scale
from tests.support.command import (
    list_files,
    load_newest_state,
    load_status,
    read_metrics_log,
    run_genexp,
    start_genexp,
    wait_for,
)
from tests.support.compose import compose_config, compose_values, tiny_overrides

STEPS = 50
# A number of the model that differs between the rows, beside seed and learning rate.
VARYING_KEYS = {
    "stacked_autoencoder": [],
    "latent3d_autoencoder": [],
    "conv_autoencoder": [],
    "denoising_autoencoder": ["model.noise"],
    "conv_denoising_autoencoder": ["model.noise"],
    "vae": ["model.beta", "model.free_bits"],
    "gan": ["model.dropout"],
    "dcgan": [],
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


def build_initialized_run(*overrides: str, template: Run | None = None) -> Run:
    """Return a run as it is before its first step."""
    train_only = ("trainer.evaluate_every=0", "trainer.preview_every=0")
    run = build_run(compose_values(*overrides, *train_only), None, data_from=template)
    initialize_technique(run.learner, run.data.train, run.seed)
    return run


def train_alone(run: Run, steps: int = STEPS) -> dict[str, Any]:
    """Return the state of a run after so many steps."""
    batches = run.data.batch_source.iter_batches(1)
    for step in range(1, steps + 1):
        seed_generators(run.learner.device, run.seed, step)
        run.learner.step(next(batches), run.data.train, Clock(step, steps, run.data.batch_source.steps_per_epoch))
    return copy.deepcopy(run.learner.state_dict())


def train_as_ensemble(runs: list[Run], steps: int = STEPS) -> list[dict[str, Any]]:
    """Return the states of runs that learn as one."""
    ensemble_step = EnsembleStep([run.learner for run in runs], [run.seed for run in runs])
    batch_streams = [run.data.batch_source.iter_batches(1) for run in runs]
    for step in range(1, steps + 1):
        batches = [next(batch_stream) for batch_stream in batch_streams]
        batch = {name: torch.stack([part[name] for part in batches]) for name in batches[0]}
        clock = Clock(step, steps, runs[0].data.batch_source.steps_per_epoch)
        ensemble_step.step(batch, False, runs[0].data.train, clock)
    ensemble_step.update_members()
    return [run.learner.state_dict() for run in runs]


def member_overrides(name: str) -> list[list[str]]:
    """Return the words of two runs that differ in numbers."""
    lr = compose_config(f"model={name}").model.recipe.lr
    small = {"gan": ["model.hidden=[16,32]"], "vae": ["model.hidden=[32,16]"]}.get(name, [])
    small += ["dataset=digits"] if "gan" in name else []  # of 8 pixels a side
    return [
        [
            *tiny_overrides(name),
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
    """Weights, buffers, averages and the optimizers' state are equal after fifty steps in float64."""
    overrides = member_overrides(name)
    expected = [train_alone(build_initialized_run(*each)) for each in overrides]
    first = build_initialized_run(*overrides[0])
    found = train_as_ensemble([first, build_initialized_run(*overrides[1], template=first)])
    for member, run in zip(found, expected, strict=True):
        # A bias before batch normalization has a gradient of rounding errors only, which Adam makes steps of.
        assert_close_to_scale(member, run, 1e-7)


def test_ensemble_member_is_close_to_the_single_run_in_float32() -> None:
    overrides = [[*each, "trainer.precision=fp32"] for each in member_overrides("vae")]
    expected = [train_alone(build_initialized_run(*each)) for each in overrides]
    first = build_initialized_run(*overrides[0])
    for member, run in zip(
        train_as_ensemble([first, build_initialized_run(*overrides[1], template=first)]), expected, strict=True
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
    train_as_ensemble([first, build_initialized_run(*words[1], template=first)], steps=1)
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
    runs = [[*tiny_overrides("stacked_autoencoder"), f"seed={seed}", *overrides[seed]] for seed in (0, 1)]
    expected = [train_alone(build_initialized_run(*run), 10) for run in runs]
    first = build_initialized_run(*runs[0])
    for state, expected_state in zip(
        train_as_ensemble([first, build_initialized_run(*runs[1], template=first)], 10), expected, strict=True
    ):
        assert_close_to_scale(state, expected_state, 1e-10)


@pytest.mark.usefixtures("float64")
def test_ensemble_can_be_rebuilt_from_a_subset_of_members() -> None:
    overrides = [[*tiny_overrides("gan"), f"seed={seed}"] for seed in (1, 2, 3)]
    expected = [train_alone(build_initialized_run(*each), 8) for each in overrides]
    runs = [build_initialized_run(*each) for each in overrides]
    batches = [run.data.batch_source.iter_batches(1) for run in runs]
    for first, last, members in ((1, 4, [0, 1, 2]), (5, 8, [0, 2])):
        ensemble_step = EnsembleStep(
            [runs[member].learner for member in members], [runs[row].seed for row in members]
        )
        for step in range(first, last + 1):
            parts = [next(batches[row]) for row in members]
            batch = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
            clock = Clock(step, 8, runs[0].data.batch_source.steps_per_epoch)
            ensemble_step.step(batch, False, runs[0].data.train, clock)
        ensemble_step.update_members()
    for row in (0, 2):
        assert_close_to_scale(runs[row].learner.state_dict(), expected[row], 1e-9)


def test_unsupported_random_function_is_rejected() -> None:
    generators = [MemberGenerators(), MemberGenerators()]
    for generator in generators:
        generator.seed(0)

    def draw(index: torch.Tensor) -> torch.Tensor:
        with EnsembleFunctionMode(generators, VaryingHyperparameters([]), index):
            return torch.poisson(torch.ones(3))

    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(draw, randomness="error")(torch.arange(2))


def test_dropout_between_convolutions_is_rejected() -> None:
    overrides = [[*tiny_overrides("dcgan"), "model.dropout=0.5", f"seed={seed}"] for seed in (1, 2)]
    first = build_initialized_run(*overrides[0])
    with pytest.raises(IncompatibleRunsError, match="dropout between convolutions"):
        train_as_ensemble([first, build_initialized_run(*overrides[1], template=first)], 1)


def test_differing_setting_that_is_not_a_float_is_reported() -> None:
    one = [
        build_initialized_run(*tiny_overrides("stacked_autoencoder"), f"model.activation={name}")
        for name in ("relu", "tanh")
    ]
    with pytest.raises(IncompatibleRunsError, match="activation"):
        VaryingHyperparameters([run.learner.technique for run in one])
    one = [
        build_initialized_run(*tiny_overrides("stacked_autoencoder"), f"model.widths={widths}")
        for widths in ("[8,4]", "[8,3]")
    ]
    with pytest.raises(IncompatibleRunsError, match="widths"):
        VaryingHyperparameters([run.learner.technique for run in one])


def test_gradients_are_clipped_per_member() -> None:
    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0]]), torch.tensor([[4.0], [0.4]])]
    assert clip_grad_norm_per_member(gradients, 1.0).tolist() == pytest.approx([5.0, 0.5])
    assert gradients[0].tolist() == [pytest.approx([0.6, 0.0]), pytest.approx([0.3, 0.0])]
    assert gradients[1].flatten().tolist() == pytest.approx([0.8, 0.4])


SHORT_RUN = (*tiny_overrides("stacked_autoencoder"), "trainer.epochs=3")


def vectorized_sweep_arguments(
    sweep_dir: Path, *overrides: str, run_overrides: tuple[str, ...] = SHORT_RUN
) -> list[str]:
    """Return the command of a sweep as one computation."""
    launcher_overrides = ("hydra/launcher=vectorized", "hydra.launcher.measure=false")
    return ["-m", *run_overrides, *launcher_overrides, *overrides, f"hydra.sweep.dir={sweep_dir}"]


def assert_same_curves(left: Path, right: Path) -> None:
    """Assert that two runs have measured the same things at the same steps, up to rounding."""
    for one, other in zip(read_metrics_log(left), read_metrics_log(right), strict=True):
        assert one.keys() == other.keys()
        assert [one[key] for key in one if key != "split"] == pytest.approx(
            [other[key] for key in other if key != "split"], rel=1e-3
        )


def test_vectorized_job_writes_the_files_of_a_single_run_and_resumes(tmp_path: Path) -> None:
    result = run_genexp(*vectorized_sweep_arguments(tmp_path / "sweep", "seed=1,2", "optimizer.lr=1e-3,1e-2"))
    assert result.exit_code == 0, result.stderr
    assert "jobs #0 to #3 as one computation" in result.stdout
    assert (
        run_genexp(*SHORT_RUN, "seed=2", "optimizer.lr=1e-2", f"hydra.run.dir={tmp_path / 'run'}").exit_code == 0
    )
    job, run = tmp_path / "sweep" / "3", tmp_path / "run"
    assert list_files(job) == list_files(run)
    assert_same_curves(job, run)
    assert (job / "config.yaml").read_text() == (run / "config.yaml").read_text()
    assert_close_to_scale(load_newest_state(job), load_newest_state(run), 1e-2)
    newest, uninterrupted = (list_checkpoints(folder)[0].stat().st_size for folder in (job, run))
    assert newest == pytest.approx(uninterrupted, rel=0.01)
    assert "epoch 3/3" in (job / "train.log").read_text()
    assert (job / "train.log").read_text().count("epoch 3/3") == 1
    for folder in (job, run):
        assert run_genexp(f"resume={folder}", "trainer.epochs=4").exit_code == 0
    assert_same_curves(job, run)


def test_diverging_member_does_not_affect_the_others(tmp_path: Path) -> None:
    result = run_genexp(*vectorized_sweep_arguments(tmp_path / "sweep", "optimizer.lr=1e-3,1e9,1e-2"))
    assert result.exit_code == 1
    assert "1 of 3 jobs failed, first #1" in result.stderr
    states = {number: load_status(tmp_path / "sweep" / str(number)) for number in range(3)}
    assert [states[number]["state"] for number in range(3)] == ["finished", "failed", "finished"]
    assert "lower optimizer.lr" in states[1]["error"]
    assert run_genexp(*SHORT_RUN, "optimizer.lr=1e-2", f"hydra.run.dir={tmp_path / 'run'}").exit_code == 0
    assert_same_curves(tmp_path / "sweep" / "2", tmp_path / "run")


def test_jobs_at_different_steps_can_be_resumed(tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "straight", tmp_path / "killed"
    interval_overrides = ("trainer.keep_checkpoints=9", "seed=range(3)", "trainer.preview_every=0")
    assert run_genexp(*vectorized_sweep_arguments(uninterrupted, *interval_overrides)).exit_code == 0
    shutil.copytree(uninterrupted, killed)
    for number, kept in ((0, 1), (1, 2), (2, 2)):  # as if killed behind so many checkpoints
        for file in list_checkpoints(killed / str(number))[:-kept]:
            file.unlink()
        (killed / str(number) / "status.json").unlink()
    overrides = vectorized_sweep_arguments(killed, *interval_overrides)[:-1]
    result = run_genexp(*overrides, f"sweep.resume={killed}")
    assert result.exit_code == 0, result.stderr
    assert "jobs #1, #2 as one computation" in result.stdout
    for number in range(3):
        assert_same_curves(uninterrupted / str(number), killed / str(number))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=lbfgs", "seed=0,1"], "jobs #0, #1 one after the other: a step of optimizer=lbfgs"),
        (["model.widths=[8,4],[8,3]"], "jobs #0, #1 one after the other: they differ in model.widths"),
        (["model=deep_kmeans", "model.pretrain=0.2,0.8"], "what is computed depends on model.pretrain"),
    ],
)
def test_incompatible_jobs_run_sequentially_with_a_message(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    short = (
        *tiny_overrides("deep_kmeans" if "model=deep_kmeans" in overrides else "stacked_autoencoder"),
        "trainer.max_steps=2",
    )
    overrides = [word for word in overrides if word != "model=deep_kmeans"]
    result = run_genexp(*vectorized_sweep_arguments(tmp_path, *overrides, run_overrides=short))
    assert result.exit_code == 0, result.stderr
    assert message in result.stdout
    assert all(load_status(tmp_path / number)["state"] == "finished" for number in "01")


def test_measured_step_times_are_printed(tmp_path: Path) -> None:
    overrides = [word for word in vectorized_sweep_arguments(tmp_path, "seed=0,1") if "measure" not in word]
    result = run_genexp(*overrides)
    assert result.exit_code == 0, result.stderr
    assert "ms a step of all, one after the other" in result.stdout


def test_signal_stops_all_members_and_they_can_be_resumed(tmp_path: Path) -> None:
    endless_overrides = (
        *tiny_overrides("stacked_autoencoder"),
        "trainer.epochs=1000000",
        "trainer.preview_every=0",
    )
    overrides = vectorized_sweep_arguments(
        tmp_path, "seed=0,1", "trainer.evaluate_every=0", run_overrides=endless_overrides
    )
    with start_genexp(*overrides) as process:
        logs = [tmp_path / number / "metrics.jsonl" for number in "01"]
        wait_for(lambda: all(log.is_file() and read_metrics_log(log.parent) for log in logs), seconds=120)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 130
    steps = [load_status(tmp_path / number)["step"] for number in "01"]
    assert [load_status(tmp_path / number)["state"] for number in "01"] == ["stopped", "stopped"]
    assert steps[0] == steps[1] == load_newest_state(tmp_path / "0")["step"]
    shutil.copytree(tmp_path / "1", tmp_path / "alone")
    result = run_genexp(f"resume={tmp_path / 'alone'}", f"trainer.max_steps={steps[0] + 3}")
    assert result.exit_code == 0, result.stderr


def test_learners_stay_usable_after_stacking() -> None:
    """A learner's own technique is a row of the common weights: looking at it needs no copy."""
    runs = [build_initialized_run(*tiny_overrides("stacked_autoencoder"), f"seed={seed}") for seed in (0, 1)]
    before = [next(learner.technique.parameters()).detach().clone() for learner in get_learners(runs)]
    train_as_ensemble(runs, 1)
    for learner, weight in zip(get_learners(runs), before, strict=True):
        assert not torch.equal(next(learner.technique.parameters()), weight)


def get_learners(runs: list[Run]) -> list[Learner]:
    return [run.learner for run in runs]
