"""A wheel built from the tree works anywhere: it has all it needs, and finds it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from genexp import __version__
from tests.support.command import REPOSITORY, metrics, status


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command, which must succeed, and return what it printed."""
    settings = {**os.environ, **environment}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=settings, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and from that a wheel, as an upload would be."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index")
    call(*pip, "--no-deps", "--target", folder, wheel, cwd=folder)
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_of_conf(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.relative_to(REPOSITORY).as_posix().removeprefix("genexp/plugins/")
        for path in (REPOSITORY / "genexp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    settings = {
        f"genexp/{path.relative_to(REPOSITORY).as_posix()}" for path in (REPOSITORY / "conf").rglob("*.yaml")
    }
    information = f"genexp-{__version__}.dist-info"
    inside = {name for name in names if not name.startswith(information)}
    assert inside == package | settings
    assert f"{information}/licenses/LICENSE" in names


def test_an_installed_wheel_trains_in_another_folder(installed: Path, tmp_path: Path) -> None:
    short = "dataset.limit=40 trainer.batch_size=8 trainer.max_steps=1 trainer.evaluate_every=0 device=cpu"
    where = {"cwd": tmp_path, "PYTHONPATH": str(installed)}
    source = "import genexp, genexp.config; print(genexp.__file__, genexp.config.find_config_dir())"
    found = call(sys.executable, "-c", source, **where).split()  # type: ignore[arg-type]
    assert found == [str(installed / "genexp" / "__init__.py"), str(installed / "genexp" / "conf")]
    words = ("model=stacked_autoencoder", *short.split())
    call(installed / "bin" / "genexp", *words, "hydra.run.dir=run", **where)  # type: ignore[arg-type]
    # Its launchers are where Hydra looks for them.
    assert (installed / "hydra_plugins" / "genexp_basic_launcher.py").is_file()
    call(installed / "bin" / "genexp", "-m", *words, "seed=0,1", "hydra.sweep.dir=sweep", **where)  # type: ignore[arg-type]
    assert status(tmp_path / "sweep" / "1")["state"] == "finished"
    assert status(tmp_path / "run")["state"] == "finished"
    assert status(tmp_path / "run")["environment"]["git_commit"] == "unknown"
    assert metrics(tmp_path / "run")[0]["step"] == 1


def test_a_folder_of_ones_own_adds_to_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    preset = "# @package _global_\ndefaults:\n  - override /model: conv_autoencoder\nseed: 41\n"
    (tmp_path / "mine" / "experiment" / "forty_one.yaml").write_text(preset)
    printed = call(
        installed / "bin" / "genexp",
        *("--config-dir=mine", "experiment=forty_one", "--cfg", "job"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    composed = yaml.safe_load(printed)
    assert (composed["model"]["name"], composed["seed"]) == ("conv_autoencoder", 41)
