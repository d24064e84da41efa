"""Mistakes in the code of a plugin that a run finds: one line with the file and the line of the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from genexp.registry import set_plugins
from tests.support.command import format_run_dir_override, get_error_line, run_genexp
from tests.support.plugins import PLUGIN_RUN_OVERRIDES, write_plugin

# Line 9 is `def phases`, line 11 `def loss`, line 14 `def evaluate`; the last part is the body of `load`.
SOURCE = """
@genexp.register_technique("mine")
class Mine(genexp.Technique):
    @dataclass
    class Config: pass
    def __init__(self, config, spec): super().__init__(); self.layer = torch.nn.Linear(784, 784)
    def phases(self):
        return {phases}
    def loss(self, batch, clock):
        images = batch["image"].flatten(1); loss = (self.layer(images) - images).square()
        {loss}
    def evaluate(self, samples):
        return {scores}
@genexp.register_dataset("data")
@dataclass
class Data:
    def load(self): return {data}
"""
GOOD = {
    "phases": '(genexp.GradientPhase("phase", self.layer, self.loss),)',
    "loss": "return loss.mean(), {}",
    "scores": '{"loss": 1.0}',
    "data": "genexp.Dataset.from_arrays({'image': torch.rand(40, 28, 28)}, {'image': torch.rand(9, 28, 28)})",
}


@pytest.fixture(autouse=True)
def _remove_plugins() -> Iterator[None]:
    yield
    set_plugins([])


def write_technique(folder: Path, **parts: str) -> Path:
    """Write the plugin with some of its parts replaced."""
    return write_plugin(folder, SOURCE.format(**{**GOOD, **parts}))


def train(plugin: Path, run_dir: Path) -> tuple[str, ...]:
    """Return the command line of a run of two steps."""
    options = ("--plugin", str(plugin), "model=mine", "dataset=data", *PLUGIN_RUN_OVERRIDES)
    return (*options, "trainer.max_steps=2", format_run_dir_override(run_dir))


def test_the_technique_without_mistakes_trains(tmp_path: Path) -> None:
    result = run_genexp(*train(write_technique(tmp_path), tmp_path / "run"))
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("part", "code", "line", "message"),
    [
        ("phases", '(genexp.GradientPhase("phase", torch.nn.ReLU(), self.loss),)', 11, "phase has no parameters"),
        (
            "phases",
            "(self.layer,)",
            None,
            "phases() returned Linear(in_features=784",
        ),
        ("phases", f"2 * {GOOD['phases']}", None, "two phases have one name: phase, phase. Rename one."),
        ("loss", "return loss, {}", 11, "phase: the loss has the shape (8, 784). Return a scalar"),
        ("loss", "return loss.mean()", 11, "the loss must return a scalar tensor and a mapping of metrics"),
        ("loss", "return loss.mean().item(), {}", 11, "the loss must return a scalar tensor"),
        ("loss", "return loss.mean().detach(), {}", 11, "the loss depends on no parameter"),
        ("loss", 'return loss.mean(), {"a": 1.0}', 11, "the metric a is not a detached scalar tensor"),
        ("loss", 'return loss.mean(), {"a": loss.mean()}', 11, "the metric a is not a detached scalar tensor"),
        ("loss", "return loss.mean(), {'a': loss.detach()}", 11, "the metric a is not a detached scalar tensor"),
        ("loss", "return loss @ images, {}", 13, "unexpected RuntimeError"),
        ("scores", '{"loss": torch.ones(())}', 14, "evaluate must return a dictionary of names and numbers"),
        ("scores", "None", 14, "evaluate must return a dictionary of names and numbers"),
        ("scores", '{"other": 1.0}', None, "trainer.objective=loss"),
        ("scores", "1 / 0", 15, "unexpected ZeroDivisionError: division by zero"),
        ("data", "3", None, "dataset=data: load() must return a genexp.Dataset"),
        ("data", "genexp.Dataset.from_arrays(train={}, test={})", None, "must have the same length (none)"),
        ("data", "genexp.Dataset.from_arrays(train={'image': [[1]]}, test={})", None, "must be (samples, "),
        ("data", "genexp.Dataset.from_arrays(train={'image': [[[7.0]]]}, test={})", None, "numbers in [0, 1]"),
        (
            "data",
            "genexp.Dataset.from_arrays(train={'point': [[1.0]], 'label': [1, 2]}, test={})",
            None,
            "must have the same length (point 1, label 2)",
        ),
    ],
)
def test_mistakes_are_one_line(part: str, code: str, line: int | None, message: str, tmp_path: Path) -> None:
    plugin = write_technique(tmp_path, **{part: code})
    text = get_error_line(run_genexp(*train(plugin, tmp_path / "run")), "genexp")
    assert message in text
    assert line is None or f"plugin.py:{line}" in text
