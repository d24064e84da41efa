"""One plugin file with a technique, loss, network, data set, metric and recorder, through all commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from genexp.api.runs import load_run
from genexp.capabilities import CanReconstruct
from genexp.cli import compare, evaluate, export, sample
from genexp.registry import set_plugins
from genexp.run_dir.checkpoint import list_checkpoints
from tests.support.assertions import assert_same_run
from tests.support.command import (
    format_run_dir_override,
    load_status,
    read_metrics_log,
    run_genexp,
    run_main,
    start_genexp,
    wait_for,
)
from tests.support.plugins import write_plugin

SOURCE = """
from torch import nn
from genexp.capabilities import CanReconstruct, CanSample
from genexp.losses import LOSSES
from genexp.networks import NETWORKS

@genexp.register_loss("charbonnier", kind="reconstruction")
def charbonnier(logits, target, epsilon: float = 0.01):
    return ((logits.sigmoid() - target).square() + epsilon**2).sqrt().mean()

@genexp.register_network("narrow", kind="encoder")
def narrow(shape, size, width: int = 12):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Dropout(0.1), nn.Linear(width, size))

@genexp.register_dataset("stripes")
@dataclass
class Stripes:
    count: int = 40
    def load(self):
        generator = torch.Generator().manual_seed(1)
        phases = 6 * torch.rand(2, self.count, 1, 1, generator=generator)
        images = 0.5 + 0.5 * torch.sin(phases + torch.arange(12.0)).expand(-1, -1, 12, 12)
        labels = (phases.flatten(1) > 3).long()
        parts = [{"image": images[part], "label": labels[part]} for part in (0, 1)]
        return genexp.Dataset.from_arrays(*parts, class_names=("early", "late"))

@genexp.register_metric("mean_code")
def mean_code(technique, test_batches):
    return torch.cat([technique.encode(batch) for batch in test_batches]).abs().mean()

@genexp.register_recorder("count")
class Count(genexp.Recorder):
    def open(self, run):
        self.path = run.run_dir / "count.txt"
    def record(self, snapshot):
        self.path.write_text(str(snapshot.clock.step))

@genexp.register_technique("noisy_autoencoder")
class NoisyAutoencoder(genexp.Technique, CanSample, CanReconstruct):
    recipe = {"lr": 0.01, "objective": "mse", "batch_size": 8, "epochs": 3}
    @dataclass
    class Config:
        latent: int = 4
        noise: float = 0.1
        loss: str = "charbonnier"
        encoder: str = "narrow"
    def __init__(self, config, spec):
        super().__init__()
        self.config, self.shape = config, spec.image_shape
        self.reconstruction_loss = LOSSES["reconstruction"].find(config.loss)
        self.encoder = NETWORKS["encoder"].find(config.encoder)(self.shape, config.latent)
        self.encoder(torch.zeros(2, *self.shape))
        self.decoder = NETWORKS["decoder"].find("dense")(self.shape, config.latent, hidden=(12,))
    def phases(self):
        return (genexp.GradientPhase("autoencoder", self, self.loss),)
    def loss(self, batch, clock):
        images = batch["image"]
        codes = self.encoder(images + self.config.noise * torch.randn_like(images))
        return self.reconstruction_loss(self.decoder(codes), images), {}
    def reconstruct(self, images):
        return self.decoder(self.encoder(images)).sigmoid()
    def sample(self, count):
        return self.decoder(torch.randn(count, self.config.latent)).sigmoid()
    def encode(self, batch):
        return self.encoder(batch["image"])
    def preview(self, examples):
        return {"samples": torch.cat(list(self.sample(4)), dim=2)}
    def evaluate(self, test_batches):
        errors = [(self.reconstruct(b["image"]) - b["image"]).square().flatten(1).mean(1) for b in test_batches]
        return {"mse": float(torch.cat(errors).mean())}
"""
RAY_MARKS = (pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray"))
SETTINGS = (
    *("model=noisy_autoencoder", "dataset=stripes", "trainer.metrics=[mean_code]", "recorders.count=true"),
    *("trainer.checkpoint_spacing=0", "device=cpu", "device.threads=1"),
)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the path of the plugin."""
    yield str(write_plugin(tmp_path_factory.mktemp("proof"), SOURCE, "everything"))
    set_plugins([])
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="module")
def whole_run(plugin: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run. Tests must not change its checkpoints."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    result = run_genexp("--plugin", plugin, *SETTINGS, format_run_dir_override(run_dir))
    assert result.exit_code == 0, result.stderr
    return run_dir


def test_run_uses_all_members(whole_run: Path) -> None:
    assert load_status(whole_run)["test"].keys() == {"mse", "mean_code"}
    assert (whole_run / "count.txt").read_text() == "15"
    assert (whole_run / "samples.gif").is_file()
    losses = [row["loss"] for row in read_metrics_log(whole_run) if "loss" in row]
    assert losses[-1] < losses[0]


def test_killed_run_is_resumed_exactly(plugin: str, whole_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with start_genexp("--plugin", plugin, *SETTINGS, format_run_dir_override(run_dir)) as process:
        wait_for(lambda: len(list_checkpoints(run_dir)) > 1 or not process.is_alive(), seconds=120)
        process.kill()
        process.join()
    if load_status(run_dir)["state"] != "finished":
        result = run_genexp("--plugin", plugin, f"resume={run_dir}")
        assert result.exit_code == 0, result.stderr
    assert_same_run(whole_run, run_dir)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", pytest.param("ray", marks=RAY_MARKS)])
def test_sweep_in_other_processes_equals_the_run(
    launcher: str, plugin: str, whole_run: Path, tmp_path: Path
) -> None:
    options = (f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=1", f"hydra.sweep.dir={tmp_path}")
    result = run_genexp("--plugin", plugin, *SETTINGS, "-m", "model.noise=0.1,0.2", *options)
    assert result.exit_code == 0, result.stderr
    assert read_metrics_log(tmp_path / "0") == read_metrics_log(whole_run)
    assert load_status(tmp_path / "1")["state"] == "finished"


def test_two_processes_give_nearly_the_same_weights(plugin: str, whole_run: Path, tmp_path: Path) -> None:
    overrides = (*SETTINGS, "device.processes=2", format_run_dir_override(tmp_path / "run"))
    result = run_genexp("--plugin", plugin, *overrides)
    assert result.exit_code == 0, result.stderr
    values, expected = (load_status(folder)["test"]["mse"] for folder in (tmp_path / "run", whole_run))
    assert values == pytest.approx(expected, rel=0.01)


def test_tools_take_the_plugin(plugin: str, whole_run: Path, tmp_path: Path) -> None:
    result = run_main("genexp-evaluate", evaluate.main, "--plugin", plugin, "--json", str(whole_run))
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)
    arguments = ("--plugin", plugin, str(whole_run), "samples", "--count", "3", "--output", str(tmp_path / "made"))
    result = run_main("genexp-sample", sample.main, *arguments)
    assert result.exit_code == 0, result.stderr
    assert list((tmp_path / "made").rglob("*.png"))
    result = run_main("genexp-compare", compare.main, "--plugin", plugin, str(whole_run))
    assert result.exit_code == 0, result.stderr
    assert "mean_code" in result.stdout


def test_exported_parts_have_the_outputs_of_the_technique(plugin: str, whole_run: Path, tmp_path: Path) -> None:
    arguments = ("--plugin", plugin, str(whole_run), "--format", "torch", "--output", str(tmp_path))
    result = run_main("genexp-export", export.main, *arguments)
    assert result.exit_code == 0, result.stderr
    encoder, decoder = (torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("encoder", "decoder"))
    technique = load_run(whole_run, plugins=[plugin]).technique
    assert isinstance(technique, CanReconstruct)
    images = torch.rand(5, 1, 12, 12)
    with torch.no_grad():
        codes = encoder(images)
        torch.testing.assert_close(codes, technique.encode({"image": images}))
        torch.testing.assert_close(decoder(codes).sigmoid(), technique.reconstruct(images))
    assert "everything (SHA-256" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", ["genexp.train", "genexp.cli.export"])
def test_help_imports_neither_torch_nor_the_plugin(module: str, plugin: str) -> None:
    script = (
        f"import sys, runpy; code = 0; sys.argv = ['genexp', '--plugin', {plugin!r}, '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as error: code = error.code\n"
        "found = {'torch', 'genexp_plugin_everything'} & sys.modules.keys()\n"
        "sys.exit(str(found) if found or code else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert module != "genexp.train" or "noisy_autoencoder" in result.stdout
