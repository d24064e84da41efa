"""Runs over several processes: equality with one process, resumption and failures."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from genexp.distributed import launch
from genexp.distributed.launch import ProcessLauncher, launch_processes
from genexp.distributed.rank import RankInfo
from genexp.distributed.store import RankTask, connect_rank_store
from genexp.run_dir.checkpoint import list_checkpoints, load_newest_checkpoint
from genexp.runs.build import build_run
from genexp.runs.config import bind_experiment
from genexp.snapshot import Snapshot
from genexp.training.stopping import StopRequest
from genexp.training.trainer import train
from tests.support.assertions import assert_close, assert_same
from tests.support.command import (
    TINY_RUN_OVERRIDES,
    ForkedRank,
    format_run_dir_override,
    list_files,
    load_newest_state,
    load_status,
    read_metrics_log,
    run_genexp,
    start_genexp,
    wait_for,
)
from tests.support.compose import compose_values, make_tiny_overrides

MAX_STEPS = 6
TRAIN_ONLY = ("trainer.evaluate_every=0", "trainer.preview_every=0", "trainer.checkpoint_every=0")
SINGLE_PROCESS = ProcessLauncher(RankInfo(), 1)


@pytest.fixture(autouse=True)
def _forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the ranks of runs in this process by the fork server, without the seconds of importing torch.

    Runs in other processes, such as those that are killed, start their ranks as users' runs do.
    """
    monkeypatch.setattr(launch, "_start_process", ForkedRank)


@pytest.fixture(scope="module")
def two_processes() -> Iterator[ProcessLauncher]:
    """Return a launcher of this process and a second one, shared by all runs of this module."""
    with launch_processes(RankInfo(world_size=2, local_world_size=2), num_threads=1) as both:
        yield both


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Compute in float64, so that rounding hides no difference."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class CurveRecorder:
    """Recorder of the training metrics of a run."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def record(self, snapshot: Snapshot) -> None:
        for name, curve in snapshot.train_curves.items():
            self.values.setdefault(name, []).extend(curve.values.tolist())


def train_run(launcher: ProcessLauncher, *overrides: str) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the training metrics and the final state of a run of a few steps."""
    config_values = compose_values(*overrides, *TRAIN_ONLY, f"trainer.max_steps={MAX_STEPS}")
    context, curves = build_run(bind_experiment(config_values), None, launcher.rank_info), CurveRecorder()
    with (
        closing(context.data.batch_source),
        launcher.dispatch_task(RankTask(config_values, 0, "float64"), context.learner.device, "") as group,
    ):
        train(context.learner, context.data, curves, context.config.trainer, StopRequest(), seed=0, group=group)
    return curves.values, context.learner.state_dict()


CASES = {
    "an autoencoder": make_tiny_overrides("stacked_autoencoder"),
    "noise": make_tiny_overrides("denoising_autoencoder"),
    "the VAE": make_tiny_overrides("vae"),
    "free bits": [*make_tiny_overrides("vae"), "model.free_bits=0.5"],
    "importance samples": [*make_tiny_overrides("vae"), "model.importance_samples=3", "model.pixels=drawn"],
    "total correlation": [*make_tiny_overrides("vae"), "model.total_correlation=4", "model.pixels=fixed"],
    "a GAN with dropout": [*make_tiny_overrides("gan"), "model.dropout=0.3"],
    "batch norm in two players": [*make_tiny_overrides("dcgan"), "model.discriminator_norm=batch"],
    "a gradient penalty": [*make_tiny_overrides("wgan_gp"), "model.critic_steps=2"],
    "batch norm": make_tiny_overrides("conv_denoising_autoencoder"),
    "k-means": make_tiny_overrides("kmeans"),
    "k-means on batches": [*make_tiny_overrides("kmeans"), "trainer.batch_size=8"],
    # The fit of the neighbor classifier amplifies rounding.
    "deep k-means": [*make_tiny_overrides("deep_kmeans"), "model.pull=sharpened"],
    "a history of images": [*make_tiny_overrides("cyclegan"), "model.history=6"],
    "translation": make_tiny_overrides("pix2pix"),
    "flow matching": [
        *make_tiny_overrides("flow_matching"),
        "model.optimal_transport=true",
        "model.compared_evaluations=[]",  # the classifier of the figure computes in float32
    ],
    "a codebook": [*make_tiny_overrides("vq_vae"), "model.restart_threshold=0.5"],
    "scalar quantization": [*make_tiny_overrides("vq_vae"), "model.quantizer=fsq"],
    "a relativistic GAN": [
        *make_tiny_overrides("dcgan"),
        "model.loss=relativistic",
        "model.discriminator_norm=none",
        "model.r1=1",
        "model.r2=1",
        "model.augmentation=[color,translation,cutout]",
    ],
    "L-BFGS": [*make_tiny_overrides("stacked_autoencoder"), "optimizer=lbfgs"],
    "an average": [*make_tiny_overrides("vae"), "trainer.ema=0.9", "trainer.gradient_clip=0.1"],
}


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("case", CASES)
def test_two_processes_match_one_process(case: str, two_processes: ProcessLauncher) -> None:
    (curves, state), (shared_curves, shared_state) = (
        train_run(SINGLE_PROCESS, *CASES[case]),
        train_run(two_processes, *CASES[case]),
    )
    assert_close(shared_curves, curves)
    assert_close(shared_state, state)


def describe_shapes(state: Any) -> Any:
    """Replace the leaves of nested values by their types, shapes and dtypes."""
    if isinstance(state, dict):
        return {key: describe_shapes(value) for key, value in state.items()}
    return (state.shape, state.dtype) if isinstance(state, torch.Tensor) else type(state)


def test_run_of_two_processes_can_be_resumed_by_one(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    overrides = [
        *make_tiny_overrides("vae"),
        "trainer.epochs=4",
        "trainer.checkpoint_every=1",
        "trainer.keep_checkpoints=9",
    ]
    assert run_genexp(*overrides, format_run_dir_override(alone)).exit_code == 0
    result = run_genexp(*overrides, "device.processes=2", format_run_dir_override(shared))
    assert result.exit_code == 0, result.stderr
    assert list_files(shared) == list_files(alone)
    assert describe_shapes(load_newest_state(shared)) == describe_shapes(load_newest_state(alone))
    assert load_status(shared)["environment"]["device"].startswith("2 × cpu")
    *later, _, _, _ = list_checkpoints(shared)
    for file in later:
        file.unlink()
    result = run_genexp(f"resume={shared}", "device.processes=1")
    assert result.exit_code == 0, result.stderr
    assert_close(read_metrics_log(shared), read_metrics_log(alone), rel=1e-3)  # rounding in float32


def test_resumed_run_of_two_processes_equals_uninterrupted_run(tmp_path: Path) -> None:
    uninterrupted, resumed = tmp_path / "straight", tmp_path / "resumed"
    interval_overrides = (
        "trainer.epochs=2",
        "trainer.checkpoint_every=1",
        "trainer.keep_checkpoints=3",
        "device.processes=2",
        "model.discriminator_norm=batch",
    )
    assert (
        run_genexp(
            *make_tiny_overrides("dcgan"), *interval_overrides, format_run_dir_override(uninterrupted)
        ).exit_code
        == 0
    )
    shutil.copytree(uninterrupted, resumed)
    list_checkpoints(resumed)[0].unlink()
    (resumed / "status.json").unlink()
    result = run_genexp(f"resume={resumed}")
    assert result.exit_code == 0, result.stderr
    assert_same(load_newest_state(uninterrupted), load_newest_state(resumed))
    assert read_metrics_log(uninterrupted) == read_metrics_log(resumed)


def write_started_pid(file: Path) -> None:
    """Make this process write the process id of the rank that it starts to a file."""
    start = launch._start_process

    def start_and_write_pid(*arguments: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments)
        file.write_text(str(process.pid))
        return process

    launch._start_process = start_and_write_pid  # type: ignore[assignment]


def endless_run(run_dir: Path) -> list[str]:
    interval_overrides = ("trainer.checkpoint_every=1", "trainer.epochs=1000000", "trainer.preview_every=0")
    return [
        *make_tiny_overrides("stacked_autoencoder"),
        *interval_overrides,
        "trainer.evaluate_every=0",
        "device.processes=2",
        format_run_dir_override(run_dir),
    ]


def test_killed_rank_fails_the_run_with_one_line(tmp_path: Path) -> None:
    folder, number = tmp_path / "run", tmp_path / "number"
    with start_genexp(*endless_run(folder), prepare=write_started_pid, prepare_args=(number,)) as process:
        wait_for(lambda: len(list_checkpoints(folder)) > 1, seconds=150)
        os.kill(int(number.read_text()), signal.SIGKILL)
        process.join(100)
        assert process.exitcode == 1
    state = load_status(folder)
    assert state["state"] == "failed"
    assert "process 1 of 2 was killed by signal 9" in state["error"]
    assert "\n" not in state["error"]
    assert load_newest_checkpoint(folder)[1] == [], "the newest checkpoint is damaged"


def test_signal_to_any_rank_stops_all_ranks_after_the_same_step(tmp_path: Path) -> None:
    folder, number = tmp_path / "run", tmp_path / "number"
    with start_genexp(*endless_run(folder), prepare=write_started_pid, prepare_args=(number,)) as process:
        wait_for(lambda: len(list_checkpoints(folder)) > 1, seconds=150)
        os.kill(int(number.read_text()), signal.SIGTERM)
        process.join(100)
        assert process.exitcode == 128 + signal.SIGTERM
    assert load_status(folder)["state"] == "stopped"
    assert load_status(folder)["step"] == read_metrics_log(folder)[-1]["step"] == load_newest_state(folder)["step"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


def test_run_started_by_torchrun_matches_one_process(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    overrides = [*make_tiny_overrides("vae"), *TRAIN_ONLY, f"trainer.max_steps={MAX_STEPS}"]
    assert run_genexp(*overrides, format_run_dir_override(alone)).exit_code == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*torchrun, "-m", "genexp.train", *overrides, format_run_dir_override(shared)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert list_files(shared) == list_files(alone)
    assert_close(read_metrics_log(shared), read_metrics_log(alone), rel=1e-4)  # rounding in float32


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["device.processes=0"], "device.processes=0: must be at least 1."),
        (
            ["trainer.batch_size=3", "device.processes=4"],
            "trainer.batch_size=3: fewer samples than processes (4)",
        ),
        (
            ["trainer.batch_size=9", "device.processes=2"],
            "trainer.batch_size=9: must be divisible by the number of processes (2)",
        ),
        (
            ["-m", "trainer.batch_size=8,9", "device.processes=2"],
            "trainer.batch_size=9: must be divisible by the number of processes (2). Use 8 or 10.",
        ),
        (
            ["model=style_transfer", "model.weights=random", "device.processes=2"],
            "trainer.batch_size=null (1 sample",
        ),
    ],
)
def test_invalid_number_of_processes_fails_before_any_process_starts(
    overrides: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_start_process", lambda *_: pytest.fail("a process was started"))
    folders = [format_run_dir_override(tmp_path / "run"), f"hydra.sweep.dir='{tmp_path / 'sweep'}'"]
    result = run_genexp("model=stacked_autoencoder", *TINY_RUN_OVERRIDES, *overrides, *folders)
    assert result.exit_code == 1
    assert result.stderr.startswith("genexp: ")
    assert error in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_torchrun_cannot_be_combined_with_device_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    result = run_genexp(
        *make_tiny_overrides("vae"), "device.processes=2", format_run_dir_override(tmp_path / "run")
    )
    connect_rank_store.cache_clear()
    assert result.exit_code == 1
    assert "torchrun has already started 2 processes. Use device.processes=1" in result.stderr
