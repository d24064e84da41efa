"""Unusual settings, names and files on real commands: success, or one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genexp.cli import compare, diff, evaluate, export, sample
from genexp.run_dir.checkpoint import load_checkpoint, save_checkpoint
from genexp.runs.load import find_checkpoint
from tests.support.command import FIGURES_ON, REPO_ROOT, get_error_line, run_genexp, run_main
from tests.support.compose import make_tiny_overrides

TINY_RUN = (*make_tiny_overrides("stacked_autoencoder"), "model.widths=[16,3]", "trainer.max_steps=2")
OUTPUT = ("hydra.run.dir=out", "hydra.sweep.dir=sweep")


@pytest.fixture(scope="module")
def finished_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "run"
    assert run_genexp(*TINY_RUN, f"hydra.run.dir={directory}").exit_code == 0
    return directory


@pytest.fixture
def run_dir(finished_run_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run_dir, tmp_path / "run")
    return Path("run")


@pytest.fixture(autouse=True)
def _change_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.name=null"], "model.name=None: "),
        (["model.name=[a]"], "model.name=['a']: "),
        (["~model.name"], "model.name=null: "),
        (["dataset.name=[a]"], "dataset.name=['a']: "),
        (["optimizer.name=[a]"], "optimizer.name=['a']: "),
        (["~seed"], "seed: missing"),
        (["seed=1e23"], "seed=1e+23: "),
        (["trainer.max_steps=1e23"], "trainer.max_steps=1e+23: "),
        (["tags=[[a]]"], "tags=[['a']]: "),
        (["tags=[{a: 1}]"], "tags=[{'a': 1}]: "),
        (["+model.recipe.foo=3"], "model.recipe.foo: not read by an optimizer or trainer"),
        (["device.threads=100000"], "device.threads=100000: "),
        (["-m", "seed=range(0)"], "seed=range(0): no values"),
        (["-m", "seed=range(0,1000000000)"], "more than 100,000 values"),
        (["-m", "optimizer.lr=interval(0.5,0.1)"], "optimizer.lr=interval(0.5,0.1): an empty interval"),
        (["-m", "optimizer.lr=interval(0.1,0.5)"], "optimizer.lr=interval(0.1,0.5): not a list of values"),
        (["-m", "optimizer.lr=interval(0.5,0.1)", "hydra/sweeper=optuna"], "an empty interval"),
        (["--cfg", "unknown"], "argument --cfg/-c: invalid choice: 'unknown'"),
        (["seed=1", "--unknown"], "unrecognized arguments: --unknown"),
        (["dataset.root=\udcff"], "\\xff: not UTF-8"),
    ],
)
def test_unusual_settings_are_refused_with_one_line(arguments: list[str], message: str) -> None:
    line = get_error_line(run_genexp(*TINY_RUN, *OUTPUT, *arguments), "genexp")
    assert message in line
    assert "unexpected" not in line


@pytest.mark.parametrize(
    "program", ["genexp-compare", "genexp-evaluate", "genexp-sample", "genexp-export", "genexp-diff"]
)
def test_tools_refuse_paths_that_are_not_utf8(program: str) -> None:
    main: Callable[[], Any] = {
        "genexp-compare": compare.main,
        "genexp-evaluate": evaluate.main,
        "genexp-sample": sample.main,
        "genexp-diff": diff.main,
        "genexp-export": export.main,
    }[program]
    assert "\\xff: not UTF-8" in get_error_line(run_main(program, main, "\udcff", "run"), program)


def test_one_sample_per_batch_is_too_few_for_batch_normalization() -> None:
    arguments = [word for word in make_tiny_overrides("deep_kmeans") if "batch_size" not in word]
    line = get_error_line(run_genexp(*arguments, *OUTPUT, "trainer.batch_size=1"), "genexp")
    assert line == "genexp: trainer.batch_size=1: batch normalization needs more. Use at least 2."
    assert json.loads(Path("out/status.json").read_text())["error"] in line


@pytest.mark.parametrize("name", ["a b'", 'q"', "a\\", "[red]x[\\red]", "ä€😀"])
def test_runs_and_sweeps_in_folders_with_special_names_can_be_resumed(name: str, run_dir: Path) -> None:
    run_dir.rename(name)
    result = run_genexp(f"resume={name}", "trainer.max_steps=3")
    assert result.exit_code == 0, result.stderr
    assert name in result.stdout
    Path(name).rename("run")
    line = get_error_line(run_genexp("-m", f"sweep.resume={name}", *TINY_RUN), "genexp")
    assert f"sweep.resume={name}: " in line


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("train_side", "test_side", "message"),
    [
        (8, 9, "samples of 1×8×8 for training and 1×9×9 for the test (image)"),
        (0, 0, "samples of 1×0×0 for training"),
    ],
)
def test_images_of_unequal_sizes_or_no_pixels_are_refused(train_side: int, test_side: int, message: str) -> None:
    for split, side in (("train", train_side), ("t10k", test_side)):
        write_idx(Path(f"{split}-images-idx3-ubyte"), np.zeros((20, side, side)))
        write_idx(Path(f"{split}-labels-idx1-ubyte"), np.arange(20) % 10)
    for model in ("stacked_autoencoder", "kmeans", "dcgan"):
        arguments = [word for word in make_tiny_overrides(model) if not word.startswith("dataset")]
        result = run_genexp(*arguments, "dataset=mnist", "dataset.root=.", f"hydra.run.dir={model}")
        assert message in get_error_line(result, "genexp")


def test_class_folders_with_special_names_are_shown_as_text() -> None:
    names = (b"[red]x", b"[[bold]", b"a\nb\tc", b"<b>&", b"\xff\xfe")
    for name in names:
        folder = Path("pictures", os.fsdecode(name))
        folder.mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / os.fsdecode(b"\xff.png")).write_bytes(b"damaged")
    arguments = [word for word in make_tiny_overrides("latent3d_autoencoder") if not word.startswith("dataset")]
    result = run_genexp(
        *arguments,
        "dataset=image_folder",
        "dataset.root=pictures",
        "dataset.size=16",
        "dataset.test_fraction=0.5",
        "trainer.max_steps=2",
        FIGURES_ON,
        *OUTPUT,
    )
    assert result.exit_code == 0, result.stderr
    classes = Path("out/projector/classes.tsv").read_text().splitlines()
    assert set(classes) == {"[red]x", "[[bold]", "a b c", "<b>&", "\\xff\\xfe"}
    assert "<b>&" not in Path("out/figures/latents.html").read_text()
    for main in (evaluate.main, sample.main, compare.main):
        result = run_main("tool", main, "out")
        assert result.exit_code == 0, result.stderr


def test_weights_that_are_not_finite_are_scored_or_refused_with_one_line(run_dir: Path) -> None:
    path = find_checkpoint(run_dir, "best")
    content = load_checkpoint(path)
    weights = content["technique"]
    content["technique"] = {name: torch.full_like(weight, torch.nan) for name, weight in weights.items()}
    save_checkpoint(path, content)
    for main in (evaluate.main, sample.main):
        result = run_main("tool", main, "run")
        assert result.exit_code in (0, 1)
        assert "unexpected" not in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stderr.count("\n") <= 1


@pytest.mark.parametrize("program", ["genexp", "genexp-evaluate", "genexp-sample"])
def test_a_read_only_run_directory_is_one_line(
    program: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def refuse_writing(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and "run" in Path(str(path)).parts:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return open_file(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse_writing)
    if program == "genexp":
        result = run_genexp("resume=run", "trainer.max_steps=3")
    else:
        main = evaluate.main if program == "genexp-evaluate" else sample.main
        result = run_main(program, main, "run", "--device", "cpu")
    line = get_error_line(result, program)
    assert "Read-only file system" in line or "cannot be written" in line
    assert "unexpected" not in line


@pytest.mark.parametrize("row", ['{"step": %s, "epoch": 1, "split": "test", "mse": 1.0}' % ("9" * 400)])
def test_steps_that_no_integer_holds_are_one_line(row: str, run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(row + "\n")
    line = get_error_line(run_main("genexp-diff", diff.main, "run", "run"), "genexp-diff")
    assert "metrics.jsonl" in line


def test_a_failed_job_prints_one_line_in_a_real_process() -> None:
    command = [sys.executable, "-m", "genexp.train", *TINY_RUN, *OUTPUT, "optimizer.lr=1e30"]
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    environment.pop("HYDRA_FULL_ERROR", None)  # set by the commands in this process
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    assert result.stderr.startswith("genexp: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Error executing job" not in result.stdout + result.stderr
