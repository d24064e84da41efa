"""Worked example of CONTRIBUTING.md: as a plugin, its own test, resumption, and as a part of the package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import genexp
from genexp.registry import set_plugins
from tests.support.assertions import assert_same_run
from tests.support.command import REPO_ROOT, format_run_dir_override, run_genexp

TECHNIQUE = "sparse_autoencoder"


@pytest.fixture
def example(tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """Write the plugin of CONTRIBUTING.md; return its path, the source of the test, and the YAML file."""
    text = (REPO_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    technique, test = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (configuration,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    path = tmp_path / f"{TECHNIQUE}.py"
    path.write_text(technique, encoding="utf-8")
    yield path, test, configuration
    set_plugins([])


def test_test_of_the_example_passes(example: tuple[Path, str, str], tmp_path: Path) -> None:
    path, test, _ = example
    names: dict[str, object] = {"genexp": genexp, "PLUGIN": path}
    exec(test, names)
    function = names["test_sparsity_turns_units_off"]
    assert callable(function)
    function(tmp_path)


def test_example_resumes_exactly(example: tuple[Path, str, str], tmp_path: Path) -> None:
    option = ("--plugin", str(example[0]))
    uninterrupted, resumed = tmp_path / "straight", tmp_path / "resumed"
    overrides = (*option, f"model={TECHNIQUE}", "dataset.limit=100", "optimizer.schedule=constant")
    assert run_genexp(*overrides, "trainer.epochs=4", format_run_dir_override(uninterrupted)).exit_code == 0
    assert run_genexp(*overrides, "trainer.epochs=2", format_run_dir_override(resumed)).exit_code == 0
    assert run_genexp(*option, f"resume={resumed}", "trainer.epochs=4").exit_code == 0
    assert_same_run(uninterrupted, resumed)


def test_yaml_has_the_defaults_of_the_plugin(example: tuple[Path, str, str]) -> None:
    path, _, configuration = example
    result = run_genexp("--plugin", str(path), f"model={TECHNIQUE}", "--cfg", "job")
    assert yaml.safe_load(result.stdout)["model"] == yaml.safe_load(configuration)
