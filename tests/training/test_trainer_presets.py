"""Presets of the trainer, its debug mode, short epochs, small data of the user, and sweeps over devices."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from genexp.config import scale_epochs
from genexp.errors import DivergenceError
from genexp.technique import Batch, Clock, GradientPhase, Metrics
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import plan_optimizers
from tests.support.command import (
    format_run_dir_override,
    get_error_line,
    load_status,
    read_metrics_log,
    run_genexp,
)
from tests.support.compose import compose_config, compose_values, make_tiny_overrides
from tests.support.toy_techniques import ToyTechnique


@pytest.mark.parametrize(
    ("factor", "epochs", "expected"), [(0.1, 50, 5), (0.1, 3, 1), (3, 16, 48), (0.1, 0, 0), (0.1, 26, 3)]
)
def test_epochs_are_scaled_to_at_least_one(factor: float, epochs: int, expected: int) -> None:
    assert scale_epochs(factor, epochs) == expected


def test_quick_and_thorough_scale_the_epochs_of_the_recipe() -> None:
    for model, epochs in (("flow_matching", 16), ("vae", 50), ("kmeans", 300)):
        default, quick, thorough = (
            compose_config(f"model={model}", f"trainer={name}").trainer
            for name in ("default", "quick", "thorough")
        )
        assert (quick.epochs, thorough.epochs) == (max(1, round(default.epochs / 10)), 3 * default.epochs), epochs
        assert quick.evaluate_every <= default.evaluate_every <= thorough.evaluate_every
        assert quick.ema == thorough.ema == default.ema
    assert compose_config("trainer=quick", "trainer.epochs=40").trainer.epochs == 40


@pytest.mark.parametrize("model", ["wgan_gp", "deep_kmeans", "vq_vae"])
def test_debug_runs_all_phases_and_writes_all_records_twice(model: str, tmp_path: Path) -> None:
    overrides = [word for word in make_tiny_overrides(model) if "spacing" not in word]
    extra = {
        "deep_kmeans": ["model.pull=sharpened"],  # few images for neighbors
        "wgan_gp": ["trainer.preview_every=0", "trainer.evaluate_every=0"],  # takes seconds
    }.get(model, [])
    run_dir = tmp_path / "run"
    result = run_genexp("trainer=debug", *overrides, *extra, format_run_dir_override(run_dir))
    assert result.exit_code == 0, result.stderr
    rows = read_metrics_log(run_dir)
    names = {name for row in rows for name in row}
    expected = {
        "wgan_gp": {"generator_loss", "discriminator_loss"},
        "deep_kmeans": {"reconstruction", "distance"},
        "vq_vae": {"autoencoder_loss", "prior_loss"},
    }[model]
    assert expected <= names
    evaluated = [row["step"] for row in rows if row["split"] == "test"]
    assert evaluated == ([] if model == "wgan_gp" else [1, 2])
    steps = {int(path.stem) for path in (run_dir / "previews").glob("*/*.png")}
    assert ({1, 2} <= steps) == (model != "wgan_gp")
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)


class RootTechnique(ToyTechnique):
    """Technique whose gradient is NaN at 0."""

    def phases(self) -> tuple[GradientPhase, ...]:
        return (GradientPhase("root", self.point, self.root_loss),)

    def root_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        return (self.point.weight * 0).sqrt().sum() * 0, {}


def test_debug_names_the_operation_whose_gradient_is_nan() -> None:
    plan = plan_optimizers(compose_values("optimizer=sgd")["optimizer"])
    learner = Learner(RootTechnique(), plan, StepSettings(debug=True), torch.device("cpu"))
    with pytest.raises(DivergenceError) as excinfo:
        learner.step({"x": torch.ones(2)}, [], Clock(1, 2, 1))
    assert re.match(
        r"the gradient of \w+Backward0 at .*test_trainer_presets.py:\d+ became NaN", str(excinfo.value)
    )
    assert "\n" not in str(excinfo.value)
    assert not torch.is_anomaly_enabled()


def test_short_epochs_have_the_first_batches_of_long_ones(tmp_path: Path) -> None:
    overrides = (
        *make_tiny_overrides("stacked_autoencoder"),
        "trainer.evaluate_every=0",
        "trainer.preview_every=0",
    )
    for name, extra in (
        ("long", ("trainer.max_steps=3",)),
        ("short", ("trainer.epoch_steps=3", "trainer.epochs=2")),
    ):
        result = run_genexp(
            *overrides, *extra, "optimizer.schedule=constant", format_run_dir_override(tmp_path / name)
        )
        assert result.exit_code == 0, result.stderr
    long, short = (read_metrics_log(tmp_path / name) for name in ("long", "short"))
    assert [row["loss"] for row in short[:3]] == [row["loss"] for row in long]
    assert [row["epoch"] for row in short] == [1, 1, 1, 2, 2, 2]
    result = run_genexp("trainer.epoch_steps=0", format_run_dir_override(tmp_path / "none"))
    assert "trainer.epoch_steps=0: must be positive, or null" in get_error_line(result, "genexp")


def test_data_of_the_user_with_fewer_samples_than_a_batch_is_one_batch(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, 16, 16)))
    overrides = (
        *make_tiny_overrides("stacked_autoencoder"),
        "dataset=arrays",
        f"dataset.file={tmp_path / 'x.npy'}",
    )
    limits = ("dataset.limit=null", "trainer.batch_size=64", "trainer.epochs=2")
    result = run_genexp(*overrides, *limits, format_run_dir_override(tmp_path / "run"))
    assert result.exit_code == 0, result.stderr
    warning = "trainer.batch_size=64: a batch has all 18 training samples, as there are no more"
    assert (tmp_path / "run" / "train.log").read_text().count(warning) == 1
    assert [row["step"] for row in read_metrics_log(tmp_path / "run") if row["split"] == "train"] == [1, 2]
    exact = run_genexp(*overrides, *limits, "trainer.batch_size=18", format_run_dir_override(tmp_path / "exact"))
    assert "a batch has all" not in exact.stdout
    assert read_metrics_log(tmp_path / "run") == read_metrics_log(tmp_path / "exact")


def test_devices_can_be_swept(tmp_path: Path) -> None:
    overrides = [word for word in make_tiny_overrides("stacked_autoencoder") if not word.startswith("device")]
    arguments = (
        "-m",
        *overrides,
        "device=cpu,auto",
        "trainer.max_steps=2",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )
    result = run_genexp(*arguments)
    assert result.exit_code == 0, result.stderr
    assert [load_status(tmp_path / "sweep" / str(job))["state"] for job in (0, 1)] == ["finished"] * 2
