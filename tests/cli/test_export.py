"""Command `genexp-export`: files that other programs load, checks against the technique, and mistakes."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from genexp.api.runs import load_run
from genexp.cli import export
from genexp.cli.export_formats import FORMATS, build_parts, measure_difference, serialize
from genexp.data import load_dataset
from genexp.data.loading import make_loader
from genexp.data.stream import select_examples
from genexp.errors import ConfigError
from genexp.registry import set_plugins
from genexp.runs.build import build_technique
from genexp.technique import Batch, Technique, list_techniques
from tests.support.command import CommandResult, format_run_dir_override, get_error_line, run_genexp, run_main
from tests.support.compose import compose_experiment, make_tiny_overrides
from tests.support.plugins import write_plugin

WITHOUT_PARTS = {"style_transfer"}  # its result is one image, which genexp-sample writes
PACKAGES = {package for file_format in FORMATS.values() for package in file_format.packages}
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES),
    reason=f"needs the extra export: {', '.join(sorted(PACKAGES))}",
)
pytestmark = needs_packages

PLUGIN = """
from torch import nn

@genexp.register_technique("plain")
class Plain(genexp.Technique):
    @dataclass
    class Config:
        is_fixed: bool = False
    recipe = {"lr": 0.01, "objective": "mse", "batch_size": 8, "epochs": 1}
    def __init__(self, config, spec):
        super().__init__()
        self.config = config
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 784), nn.Unflatten(1, spec.image_shape))
        self.register_buffer("scale", torch.ones(3))
    def phases(self):
        return (genexp.GradientPhase("autoencoder", self, self.loss),)
    def loss(self, batch, clock):
        codes = self.encode(batch)
        return (self.decoder(codes) - batch["image"]).square().mean(), {}
    def encode(self, batch):
        images = batch["image"]
        codes = self.encoder(images) * self.scale
        return codes + torch.zeros(len(images), 1) if self.config.is_fixed else codes
    def evaluate(self, test_batches):
        return {"mse": float(torch.stack([self.loss(batch, None)[0] for batch in test_batches]).mean())}
"""


def run_export(*arguments: str | Path) -> CommandResult:
    """Run genexp-export in this process."""
    return run_main("genexp-export", export.main, *map(str, arguments))


def list_written(*arguments: str | Path) -> list[Path]:
    """Run genexp-export, which must succeed, and return the paths that it prints, the model card last."""
    result = run_export(*arguments)
    assert result.exit_code == 0, result.stderr
    return [Path(line.partition(": ")[0]) for line in result.stdout.splitlines()]


def run_tiny(name: str, run_dir: Path, *overrides: str) -> Path:
    """Run a technique for two steps."""
    command = (*make_tiny_overrides(name), "trainer.max_steps=2", *overrides, format_run_dir_override(run_dir))
    result = run_genexp(*command)
    assert result.exit_code == 0, result.stderr
    return run_dir


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_tiny("vae", tmp_path_factory.mktemp("vae") / "run", "model.beta=2", "notes='| a <b>'")


def build_tiny(name: str) -> tuple[Technique, Batch]:
    """Return an untrained technique in evaluation mode, and three test samples."""
    config = compose_experiment(*make_tiny_overrides(name))
    dataset = load_dataset(config.dataset)
    device = torch.device("cpu")
    technique = build_technique(config.technique, config.model, dataset, device, 0).eval()
    return technique, select_examples(make_loader(dataset.test, device, 1.0), 3)


@pytest.mark.parametrize("name", sorted(set(list_techniques()) - WITHOUT_PARTS))
def test_weights_of_each_part_are_enough(name: str) -> None:
    """The check sets the weights of the part to 0 and reads them from the file."""
    technique, examples = build_tiny(name)
    parts = build_parts(technique, examples, [], None)
    assert parts
    for part in parts:
        content, difference = serialize(part, "safetensors")
        assert difference <= 1e-5
        num_bytes = sum(weight.numel() * weight.element_size() for weight in part.weights.values())
        assert num_bytes <= len(content) <= num_bytes + 20_000
        assert part.inputs[0].shape[0] == len(part.output)


@pytest.mark.parametrize(("name", "parts"), [("cgan", []), ("flow_matching", ["generator"])])
def test_graphs_take_any_batch_and_hold_only_their_weights(name: str, parts: list[str]) -> None:
    technique, examples = build_tiny(name)
    for part in build_parts(technique, examples, parts, None):
        content, difference = serialize(part, "torch")
        assert difference <= 1e-5
        num_bytes = sum(weight.numel() * weight.element_size() for weight in part.weights.values())
        assert len(content) < num_bytes + 800_000
        assert not set(part.program.state_dict) - {f"content.{weight}" for weight in part.weights}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(list_techniques()) - WITHOUT_PARTS))
@pytest.mark.parametrize("batch_size", [None, 2])
def test_onnx_graph_of_each_part(name: str, batch_size: int | None) -> None:
    technique, examples = build_tiny(name)
    for part in build_parts(technique, examples, [], batch_size):
        assert serialize(part, "onnx")[1] <= 1e-5


@pytest.mark.parametrize("format_name", FORMATS)
def test_model_card_loads_the_files(format_name: str, vae_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder, card = list_written(vae_run, "--format", format_name)
    assert encoder.parent == vae_run / "export" / format_name
    text = card.read_text(encoding="utf-8")
    for fact in ("# vae on mnist_5k", "model.beta | 2 (default 1)", "negative_elbo", "(batch, 1, 28, 28)"):
        assert fact in text
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert [len(block.splitlines()) <= 5 for block in blocks] == [True, True]
    for path in (encoder, decoder):
        shutil.copy(path, vae_run.parent)
    monkeypatch.chdir(vae_run.parent)
    variables: dict[str, object] = {}
    for block in blocks:
        exec(block, variables)
    if format_name != "safetensors":
        image = np.asarray(variables["image"].detach() if format_name == "torch" else variables["image"])  # type: ignore[attr-defined]
        assert image.shape == (1, 1, 28, 28)
        code = torch.zeros(1, load_run(vae_run).config["model"]["latent"])
        with torch.no_grad():
            expected = load_run(vae_run).technique.decode(code)  # type: ignore[operator]
        assert measure_difference(torch.tensor(image), expected) <= 1e-5


def test_fixed_batch_and_a_single_part(vae_run: Path, tmp_path: Path) -> None:
    path, card = list_written(
        vae_run, "--format", "torch", "--part", "decoder", "--batch", "2", "--output", tmp_path
    )
    assert {file.name for file in tmp_path.iterdir()} == {"decoder.pt2", "README.md"}
    assert "(2, 1, 28, 28)" in card.read_text(encoding="utf-8")
    program = torch.export.load(path).module()
    assert program(torch.zeros(2, 20)).shape == (2, 1, 28, 28)
    with pytest.raises(Exception, match="2"):
        program(torch.zeros(3, 20))


def test_centers_of_kmeans_are_a_plain_array(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    run_dir = run_tiny("kmeans", tmp_path / "run")
    path, _ = list_written(run_dir, "--format", "safetensors")
    centers = load_file(path)["centers"]
    expected = load_run(run_dir).technique.best_centers
    assert np.array_equal(centers, np.asarray(expected))


def test_a_file_that_differs_is_not_written(
    vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = FORMATS["safetensors"].__class__(
        ".safetensors", (), FORMATS["safetensors"].write, lambda content, part, inputs: part.module(*inputs) + 1e-4
    )
    monkeypatch.setitem(FORMATS, "safetensors", wrong)
    result = run_export(vae_run, "--format", "safetensors", "--output", tmp_path / "out")
    assert "--part encoder: the file differs from torch by 0.0001" in get_error_line(result, "genexp-export")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        (torch.tensor([1.0, 2.0]), 0.0),
        (torch.tensor([1.0, 2.2]), 0.1),
        (torch.tensor([1.0, float("nan")]), float("nan")),
        (torch.tensor([1.0]), float("inf")),
        (torch.tensor([1, 2]), float("inf")),
    ],
)
def test_difference_of_outputs(found: torch.Tensor, difference: float) -> None:
    assert measure_difference(found, torch.tensor([1.0, 2.0])) == pytest.approx(difference, nan_ok=True)


@pytest.fixture
def plain_run(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Return a plugin without list_parts, and a run of it."""
    plugin, run_dir = write_plugin(tmp_path, PLUGIN, "plain_plugin"), tmp_path / "run"
    options = ("dataset.limit=40", "device=cpu", "model.is_fixed=true", format_run_dir_override(run_dir))
    result = run_genexp("--plugin", str(plugin), "model=plain", *options)
    assert result.exit_code == 0, result.stderr
    yield plugin, run_dir
    set_plugins([])


def test_plugin_without_list_parts(plain_run: tuple[Path, Path]) -> None:
    plugin, run_dir = plain_run
    encoder, decoder, card = list_written("--plugin", plugin, run_dir, "--format", "safetensors")
    from safetensors.torch import load_file

    assert load_file(encoder).keys() == {"encoder.1.weight", "encoder.1.bias", "scale"}
    assert load_file(decoder).keys() == {"decoder.0.weight", "decoder.0.bias"}
    assert "plain_plugin (SHA-256" in card.read_text(encoding="utf-8")
    line = get_error_line(run_export(run_dir, "--format", "torch"), "genexp-export")
    assert "requires the plugin plain_plugin" in line
    arguments = ("--plugin", plugin, run_dir, "--format", "torch", "--part", "encoder")
    line = get_error_line(run_export(*arguments), "genexp-export")
    assert "--part encoder: not exportable" in line
    assert "Use --batch N, or tensor.shape[0] instead of len(tensor)" in line
    assert list_written(*arguments, "--batch", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --format"),
        (["--format", "onxx"], "--format onxx: unknown format. Use one of: safetensors, onnx, torch."),
        (["--format", "torch", "--batch", "0"], "0 is not an integer of at least 1"),
        (["--format", "torch", "--batch", "99999"], "99999 is above 10000"),
        (
            ["--format", "torch", "--part", "encodr"],
            "--part encodr: not a part of model=vae. Did you mean encoder?",
        ),
        (["--format", "torch", "--checkpoint", "none.pt"], "--checkpoint none.pt: not found"),
        (["--format", "safetensors", "--output", "FILE"], "FILE"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    assert message in get_error_line(run_export(vae_run, *arguments), "genexp-export")
    assert {path.name for path in tmp_path.iterdir()} == {"FILE"}


def test_missing_package_is_one_line(vae_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    line = get_error_line(run_export(vae_run, "--format", "onnx"), "genexp-export")
    assert "--format onnx: requires the package onnx. Run `pip install 'genexp[export]'`." in line


def test_technique_without_parts_is_one_line() -> None:
    technique, examples = build_tiny("style_transfer")
    with pytest.raises(ConfigError, match="model=style_transfer: has no part to export"):
        build_parts(technique, examples, [], None)


def test_model_card_escapes_what_a_run_says(vae_run: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(vae_run, tmp_path / "run"))
    status = json.loads((run_dir / "status.json").read_text())
    status["environment"]["plugins"] = "[link](http://example.org) <script>\n# title `code`"
    (run_dir / "status.json").write_text(json.dumps(status))
    *_, card = list_written(run_dir, "--format", "safetensors", "--part", "decoder")
    line = next(line for line in card.read_text(encoding="utf-8").splitlines() if "link" in line)
    assert line == r"| plugins | \[link\](http://example.org) \<script\> # title \`code\` |"
