"""One run over several processes computes what one process computes, and ends as a run ends."""

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
from omegaconf import OmegaConf

from genexp.device import AVAILABILITY_CHECKS, DeviceConfig, choose_device
from genexp.distributed import launch as starting
from genexp.distributed.launch import ProcessLauncher, launch_processes
from genexp.distributed.rank import RankInfo
from genexp.distributed.store import RankTask, connect_rank_store
from genexp.errors import ConfigError
from genexp.run_dir.checkpoint import list_checkpoints, load_newest_checkpoint
from genexp.runs.build import build_run
from genexp.snapshot import Snapshot
from genexp.training.stopping import StopRequest
from genexp.training.trainer import train
from tests.support.command import (
    TINY,
    assert_same,
    background,
    genexp,
    in_folder,
    last_state,
    metrics,
    status,
    wait_for,
)
from tests.support.compose import composed, tiny

STEPS = 6
BLIND = ("trainer.evaluate_every=0", "trainer.preview_every=0", "trainer.checkpoint_every=0")
ALONE = ProcessLauncher(RankInfo(), 1)


@pytest.fixture(scope="module")
def pair() -> Iterator[ProcessLauncher]:
    """Return this process and one that follows it through all runs of this file."""
    with launch_processes(RankInfo(world_size=2, local_world_size=2), threads=1) as both:
        yield both


@pytest.fixture
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
        for name, curve in snapshot.train_curves.items():
            self.values.setdefault(name, []).extend(curve.values.tolist())


def learnt(team: ProcessLauncher, *words: str) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the training metrics and the last state of a run of a few steps."""
    config = OmegaConf.to_container(composed(*words, *BLIND, f"trainer.max_steps={STEPS}"), resolve=True)
    assert isinstance(config, dict)
    plain = {str(key): value for key, value in config.items()}
    built, curves = build_run(plain, None, team.rank_info), Curves()
    with (
        closing(built.data.batch_source),
        team.dispatch_task(RankTask(plain, 0, "float64"), built.learner.device, "") as all_of_us,
    ):
        train(built.learner, built.data, curves, built.trainer_config, StopRequest(), seed=0, group=all_of_us)
    return curves.values, built.learner.state_dict()


def assert_close(left: Any, right: Any, rel: float = 1e-6, where: str = "") -> None:
    """Assert that two nested values are equal but for rounding."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_close(left[key], right[key], rel, f"{where}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), where
        for index, both in enumerate(zip(left, right, strict=True)):
            assert_close(*both, rel, f"{where}[{index}]")
    elif isinstance(left, torch.Tensor):
        torch.testing.assert_close(left, right, rtol=rel, atol=1e-9, msg=lambda text: f"{where}: {text}")
    else:
        expected = pytest.approx(right, rel=rel, abs=1e-9) if isinstance(right, float) else right
        assert left == expected, where


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


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("what", RUNS)
def test_two_processes_compute_what_one_does(what: str, pair: ProcessLauncher) -> None:
    (curves, state), (shared_curves, shared_state) = learnt(ALONE, *RUNS[what]), learnt(pair, *RUNS[what])
    assert_close(shared_curves, curves)
    assert_close(shared_state, state)


def files(folder: Path) -> set[str]:
    """Return the names of all files of a run."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def layout(state: Any) -> Any:
    """Return nested values with types and shapes in the place of values."""
    if isinstance(state, dict):
        return {key: layout(value) for key, value in state.items()}
    return (state.shape, state.dtype) if isinstance(state, torch.Tensor) else type(state)


def test_two_processes_leave_one_run_that_one_process_goes_on_with(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    words = [*tiny("vae"), "trainer.epochs=4", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=9"]
    assert genexp(*words, in_folder(alone)).code == 0
    ended = genexp(*words, "device.processes=2", in_folder(shared))
    assert ended.code == 0, ended.err
    assert files(shared) == files(alone)
    assert layout(last_state(shared)) == layout(last_state(alone))
    assert status(shared)["environment"]["device"].startswith("2 × cpu")
    *later, _, _, _ = list_checkpoints(shared)
    for file in later:
        file.unlink()
    ended = genexp(f"resume={shared}", "device.processes=1")
    assert ended.code == 0, ended.err
    assert_close(metrics(shared), metrics(alone), rel=1e-3)  # of float32


def test_two_processes_resumed_are_two_that_went_through(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    often = (
        "trainer.epochs=2",
        "trainer.checkpoint_every=1",
        "device.processes=2",
        "model.discriminator_norm=batch",
    )
    assert genexp(*tiny("dcgan"), *often, in_folder(straight)).code == 0
    shutil.copytree(straight, resumed)
    list_checkpoints(resumed)[0].unlink()
    (resumed / "status.json").unlink()
    ended = genexp(f"resume={resumed}")
    assert ended.code == 0, ended.err
    assert_same(last_state(straight), last_state(resumed))
    assert metrics(straight) == metrics(resumed)


def note_started(file: Path) -> None:
    """Let this process write down the number of a process that it starts."""
    start = starting._start_process

    def noted(*arguments: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments)
        file.write_text(str(process.pid))
        return process

    starting._start_process = noted  # type: ignore[assignment]


def endless(folder: Path) -> list[str]:
    often = ("trainer.checkpoint_every=1", "trainer.epochs=1000000", "trainer.preview_every=0")
    return [
        *tiny("stacked_autoencoder"),
        *often,
        "trainer.evaluate_every=0",
        "device.processes=2",
        in_folder(folder),
    ]


def test_a_process_that_dies_ends_the_run_with_one_line(tmp_path: Path) -> None:
    folder, number = tmp_path / "run", tmp_path / "number"
    with background(*endless(folder), prepare=note_started, options=(number,)) as process:
        wait_for(lambda: len(list_checkpoints(folder)) > 1, seconds=150)
        os.kill(int(number.read_text()), signal.SIGKILL)
        process.join(100)
        assert process.exitcode == 1
    state = status(folder)
    assert state["state"] == "failed"
    assert "process 1 of 2 was ended by signal 9" in state["error"]
    assert "\n" not in state["error"]
    assert load_newest_checkpoint(folder)[1] == [], "its newest checkpoint is whole"


def test_a_signal_to_any_process_stops_all_after_one_step(tmp_path: Path) -> None:
    folder, number = tmp_path / "run", tmp_path / "number"
    with background(*endless(folder), prepare=note_started, options=(number,)) as process:
        wait_for(lambda: len(list_checkpoints(folder)) > 1, seconds=150)
        os.kill(int(number.read_text()), signal.SIGTERM)
        process.join(100)
        assert process.exitcode == 128 + signal.SIGTERM
    assert status(folder)["state"] == "stopped"
    assert status(folder)["step"] == metrics(folder)[-1]["step"] == last_state(folder)["step"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


def test_torchrun_starts_them_too(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    words = [*tiny("vae"), *BLIND, f"trainer.max_steps={STEPS}"]
    assert genexp(*words, in_folder(alone)).code == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*torchrun, "-m", "genexp.train", *words, in_folder(shared)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert files(shared) == files(alone)
    assert_close(metrics(shared), metrics(alone), rel=1e-4)  # of float32


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["device.processes=0"], "device.processes=0: use at least 1"),
        (
            ["trainer.batch_size=3", "device.processes=4"],
            "trainer.batch_size=3 is less than one sample for each of 4",
        ),
        (
            ["trainer.batch_size=9", "device.processes=2"],
            "trainer.batch_size=9 cannot be divided among 2 processes",
        ),
        (
            ["-m", "trainer.batch_size=8,9", "device.processes=2"],
            "trainer.batch_size=9 cannot be divided among 2 processes; use 8 or 10",
        ),
        (
            ["model=style_transfer", "model.weights=random", "device.processes=2"],
            "trainer.batch_size=null (1 sample",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line_before_any_process_starts(
    words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "_start_process", lambda *_: pytest.fail("a process was started"))
    folders = [in_folder(tmp_path / "run"), f"hydra.sweep.dir='{tmp_path / 'sweep'}'"]
    ended = genexp("model=stacked_autoencoder", *TINY, *words, *folders)
    assert ended.code == 1
    assert ended.err.startswith("genexp: ")
    assert error in ended.err
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_torchrun_and_processes_of_the_runs_own_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    ended = genexp(*tiny("vae"), "device.processes=2", in_folder(tmp_path / "run"))
    connect_rank_store.cache_clear()
    assert ended.code == 1
    assert "torchrun has started 2 processes already; set device.processes=1" in ended.err


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "mps"):
        monkeypatch.setitem(AVAILABILITY_CHECKS, name, lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    later = DeviceConfig("cuda", index=1, threads=None, processes=2)
    assert [choose_device(later, local_rank=rank, local_world_size=2).index for rank in (0, 1)] == [1, 2]
    with pytest.raises(ConfigError, match=r"3 processes from device\.index=1 on want a GPU each, and there are 3"):
        choose_device(later, local_world_size=3)
    with pytest.raises(ConfigError, match="device=mps cannot be shared by 2 processes"):
        choose_device(DeviceConfig("mps", index=0, threads=None, processes=2), local_world_size=2)
