"""Worked example of CONTRIBUTING.md: discovery, its own test, and resumption."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genexp import techniques as package
from genexp.technique import list_techniques
from tests.support.assertions import assert_same_run
from tests.support.command import REPO_ROOT, format_run_dir_override, read_metrics_log, run_genexp

TECHNIQUE = "sparse_autoencoder"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Write the example files of CONTRIBUTING.md; return the command-line option and the source of the test."""
    text = (REPO_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    technique, test = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (configuration,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    techniques, models = tmp_path / "techniques", tmp_path / "conf" / "model"
    techniques.mkdir()
    models.mkdir(parents=True)
    (techniques / f"{TECHNIQUE}.py").write_text(technique, encoding="utf-8")
    (models / f"{TECHNIQUE}.yaml").write_text(configuration, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(techniques)])
    return f"--config-dir={tmp_path / 'conf'}", test


def test_example_is_found_without_editing_a_list(example: tuple[str, str]) -> None:
    assert TECHNIQUE in list_techniques()


def test_test_of_the_example_passes(example: tuple[str, str], tmp_path: Path) -> None:
    option, test = example
    names: dict[str, object] = {
        "run_genexp": lambda *overrides: run_genexp(option, *overrides),
        "run_dir_override": format_run_dir_override,
        "read_metrics_log": read_metrics_log,
    }
    exec(test, names)
    function = names["test_sparsity_turns_units_off"]
    assert callable(function)
    function(tmp_path)


def test_example_resumes_exactly(example: tuple[str, str], tmp_path: Path) -> None:
    option, _ = example
    uninterrupted, resumed = tmp_path / "straight", tmp_path / "resumed"
    overrides = (option, f"model={TECHNIQUE}", "dataset.limit=100", "optimizer.schedule=constant")
    assert run_genexp(*overrides, "trainer.epochs=4", format_run_dir_override(uninterrupted)).exit_code == 0
    assert run_genexp(*overrides, "trainer.epochs=2", format_run_dir_override(resumed)).exit_code == 0
    assert run_genexp(f"resume={resumed}", "trainer.epochs=4").exit_code == 0
    assert_same_run(uninterrupted, resumed)
