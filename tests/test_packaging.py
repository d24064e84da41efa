"""Wheel built from the source tree: content, and use from any directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from genexp import __version__
from tests.support.command import REPO_ROOT, load_status, read_metrics_log


def run_subprocess(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command, which must succeed, and return its standard output."""
    settings = {**os.environ, **environment}
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=settings, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and from it a wheel, as for an upload."""
    folder = tmp_path_factory.mktemp("dist")
    run_subprocess(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPO_ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def install_dir(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new directory."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index")
    run_subprocess(*pip, "--no-deps", "--target", folder, wheel, cwd=folder)
    return folder


def test_wheel_contains_every_file_of_package_and_conf(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.relative_to(REPO_ROOT).as_posix().removeprefix("genexp/plugins/")
        for path in (REPO_ROOT / "genexp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    settings = {f"genexp/{path.relative_to(REPO_ROOT).as_posix()}" for path in (REPO_ROOT / "conf").rglob("*.*")}
    information = f"genexp-{__version__}.dist-info"
    inside = {name for name in names if not name.startswith(information)}
    assert inside == package | settings
    licenses = {f"{information}/licenses/{name}" for name in ("LICENSE", "genexp/data/sources/mnist_5k.LICENSE")}
    assert licenses <= names


def test_links_of_the_description_are_absolute(wheel: Path) -> None:
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA")]
    links = re.findall(r"\]\(([^)\s]+)\)", zipfile.ZipFile(wheel).read(name).decode())
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_installed_wheel_trains_in_another_directory(install_dir: Path, tmp_path: Path) -> None:
    short = "dataset.limit=40 trainer.batch_size=8 trainer.max_steps=1 trainer.evaluate_every=0 device=cpu"
    run_options = {"cwd": tmp_path, "PYTHONPATH": str(install_dir)}
    source = "import genexp, genexp.config; print(genexp.__file__, genexp.config.find_config_dir())"
    found = run_subprocess(sys.executable, "-c", source, **run_options).split()  # type: ignore[arg-type]
    assert found == [str(install_dir / "genexp" / "__init__.py"), str(install_dir / "genexp" / "conf")]
    overrides = ("model=stacked_autoencoder", *short.split())
    run_subprocess(install_dir / "bin" / "genexp", *overrides, "hydra.run.dir=run", **run_options)  # type: ignore[arg-type]
    # Hydra searches launchers in this directory.
    assert (install_dir / "hydra_plugins" / "genexp_basic_launcher.py").is_file()
    sweep_overrides = (*overrides, "seed=0,1", "hydra.sweep.dir=sweep")
    run_subprocess(install_dir / "bin" / "genexp", "-m", *sweep_overrides, **run_options)  # type: ignore[arg-type]
    assert load_status(tmp_path / "sweep" / "1")["state"] == "finished"
    assert load_status(tmp_path / "run")["state"] == "finished"
    assert load_status(tmp_path / "run")["environment"]["git_commit"] == "unknown"
    assert read_metrics_log(tmp_path / "run")[0]["step"] == 1


def test_config_dir_extends_an_installed_wheel(install_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    preset = "# @package _global_\ndefaults:\n  - override /model: conv_autoencoder\nseed: 41\n"
    (tmp_path / "mine" / "experiment" / "forty_one.yaml").write_text(preset)
    printed = run_subprocess(
        install_dir / "bin" / "genexp",
        *("--config-dir=mine", "experiment=forty_one", "--cfg", "job"),
        cwd=tmp_path,
        PYTHONPATH=str(install_dir),
    )
    config = yaml.safe_load(printed)
    assert (config["model"]["name"], config["seed"]) == ("conv_autoencoder", 41)
