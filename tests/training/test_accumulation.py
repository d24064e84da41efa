"""Gradient accumulation, and compiled losses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from genexp.distributed import launch
from genexp.distributed.global_batch import AccumulationMode, GlobalBatchMode
from genexp.networks.dropout import dropout
from genexp.sharding import Shard
from genexp.training.cuda_graphs import CompiledLoss
from tests.support.assertions import assert_close
from tests.support.command import (
    ForkedRank,
    format_run_dir_override,
    get_error_line,
    load_newest_state,
    read_metrics_log,
    run_genexp,
)
from tests.support.compose import make_tiny_overrides
from tests.support.sweeps import make_sweep_arguments

TRAIN_ONLY = (
    *("trainer.evaluate_every=0", "trainer.preview_every=0", "trainer.max_steps=4", "trainer.precision=fp32"),
    "optimizer=sgd",
)


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Compute in float64, so that rounding hides no difference."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train(run_dir: Path, model: str, *overrides: str) -> dict[str, Any]:
    """Return the weights and the training metrics of a short run."""
    result = run_genexp(*make_tiny_overrides(model), *TRAIN_ONLY, *overrides, format_run_dir_override(run_dir))
    assert result.exit_code == 0, result.stderr
    return {"weights": load_newest_state(run_dir)["technique"], "metrics": read_metrics_log(run_dir)}


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("vae", ("trainer.gradient_clip=1",)),  # draws the noise of the latents
        ("denoising_autoencoder", ()),
        ("gan", ("model.dropout=0.3", "model.generator_batch_norm=false", "optimizer.lr=0.01")),  # two phases
    ],
)
def test_parts_give_the_step_of_the_whole_batch(model: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", model, *overrides)
    parts = train(tmp_path / "parts", model, *overrides, "trainer.accumulate=4")
    if model == "gan":  # the diversity of generated images is not a mean over a batch
        parts, whole = parts["weights"], whole["weights"]
    assert_close(parts, whole, rel=1e-5)


@pytest.mark.usefixtures("double_precision")
def test_parts_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With batch normalization, statistics are those of the parts, which are equal for one and two processes."""
    monkeypatch.setattr(launch, "_start_process", ForkedRank)
    overrides = ("trainer.accumulate=2", "trainer.max_steps=2")
    runs = [
        train(tmp_path / str(count), "conv_denoising_autoencoder", *overrides, f"device.processes={count}")
        for count in (1, 2)
    ]
    assert_close(runs[0]["weights"], runs[1]["weights"], rel=1e-5)


def test_batch_normalization_is_announced(tmp_path: Path) -> None:
    train(tmp_path / "run", "conv_denoising_autoencoder", "trainer.accumulate=2")
    line = "trainer.accumulate=2: batch normalization takes its statistics from each part of a batch"
    assert (tmp_path / "run" / "train.log").read_text().count(line) == 1


def test_draws_are_rows_of_the_draw_for_the_batch() -> None:
    values, weight = torch.rand(8, 3, 4, 4).to(memory_format=torch.channels_last), torch.rand(8)

    def draw(rows: torch.Tensor, probabilities: torch.Tensor) -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [
            torch.randn(len(rows), 5),
            torch.randn_like(rows),
            dropout(rows, 0.5, True),
            torch.bernoulli(probabilities),
            torch.empty(len(rows)).normal_(),
            torch.normal(probabilities, 0.1),
            torch.randn(3),
        ]

    whole = draw(values, weight)
    for index in range(2):
        with AccumulationMode(Shard(index, 2), 4):
            part = draw(values[index::2], weight[index::2])
        for found, expected in zip(part, whole, strict=True):
            assert torch.equal(found, expected[index::2] if len(expected) == 8 else expected)
        for rank in range(2):  # of two processes, each with four rows of the batch
            rows = slice(4 * rank, 4 * rank + 4)
            with AccumulationMode(Shard(index, 2), 4), GlobalBatchMode(Shard(rank, 2), 2, False):
                part = draw(values[rows][index::2], weight[rows][index::2])
            for found, expected in zip(part, whole, strict=True):
                assert torch.equal(found, expected[rows][index::2] if len(expected) == 8 else expected)


WRONG_VALUES: list[tuple[tuple[str, ...], str]] = [
    (("trainer.accumulate=0",), "trainer.accumulate=0: must be at least 1"),
    (("trainer.accumulate=3",), "must divide the 8 samples of a batch. Use trainer.accumulate=2"),
    (
        ("model=kmeans", "dataset=circles", "trainer.accumulate=2"),
        "trainer.accumulate=2: model=kmeans has no gradient phase",
    ),
    (("trainer.compile=maybe",), "trainer.compile=maybe: must be true or false"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG_VALUES)
def test_wrong_values_are_one_line(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    arguments = ("trainer.batch_size=8", *overrides, "device=cpu", format_run_dir_override(tmp_path / "run"))
    assert message in get_error_line(run_genexp(*arguments), "genexp")


@pytest.mark.parametrize("key", ["accumulate=2", "compile=true"])
def test_jobs_of_an_ensemble_run_singly(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)  # nothing is compiled
    arguments = make_sweep_arguments(
        tmp_path, "seed=0,1", "hydra/launcher=vectorized", "trainer.max_steps=1", f"trainer.{key}"
    )
    result = run_genexp(*arguments)
    assert result.exit_code == 0, result.stderr
    assert f"run sequentially: trainer.{key.partition('=')[0]} " in result.stdout


def test_without_a_compiler_losses_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(tmp_path / "plain", "stacked_autoencoder")
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = train(tmp_path / "run", "stacked_autoencoder", "trainer.compile=true")
    assert found["metrics"] == plain["metrics"]
    log = (tmp_path / "run" / "train.log").read_text()
    assert "trainer.compile=true: no effect, because no C++ compiler was found. Install g++" in log


def test_a_compilation_that_fails_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fail(*_: Any) -> Any:
        raise TorchDynamoException("no header\nlong text")

    monkeypatch.setattr(torch, "compile", lambda loss: fail)
    loss = CompiledLoss(lambda batch, clock: (batch["x"].sum(), {}))
    for _ in range(2):
        assert float(loss({"x": torch.ones(3)}, None)[0]) == 3  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == [
        "trainer.compile=true: the loss runs without compilation (no header)"
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")
def test_compiled_losses_equal_the_others_up_to_rounding(tmp_path: Path) -> None:
    plain, compiled = (
        train(tmp_path / str(flag), "vae", f"trainer.compile={flag}", "optimizer.lr=0.001")
        for flag in (False, True)
    )
    assert "without compilation" not in (tmp_path / "True" / "train.log").read_text()
    assert_close(compiled["metrics"], plain["metrics"], rel=1e-4)
