"""The technique that CONTRIBUTING.md works through is real: it runs, and keeps the contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genexp import techniques as package
from genexp.technique import list_techniques
from tests.support.command import REPOSITORY, assert_same_run, genexp, in_folder, metrics

NAME = "sparse_autoencoder"


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Lay the files of CONTRIBUTING.md beside the project's own; return the option and the test."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    technique, test = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (configuration,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    techniques, models = tmp_path / "techniques", tmp_path / "conf" / "model"
    techniques.mkdir()
    models.mkdir(parents=True)
    (techniques / f"{NAME}.py").write_text(technique, encoding="utf-8")
    (models / f"{NAME}.yaml").write_text(configuration, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(techniques)])
    return f"--config-dir={tmp_path / 'conf'}", test


def test_it_is_found_without_a_list_being_edited(added: tuple[str, str]) -> None:
    assert NAME in list_techniques()


def test_its_own_test_passes(added: tuple[str, str], tmp_path: Path) -> None:
    option, test = added
    names: dict[str, object] = {
        "genexp": lambda *words: genexp(option, *words),
        "in_folder": in_folder,
        "metrics": metrics,
    }
    exec(test, names)
    function = names["test_sparsity_turns_units_off"]
    assert callable(function)
    function(tmp_path)


def test_it_resumes_exactly(added: tuple[str, str], tmp_path: Path) -> None:
    option, _ = added
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    words = (option, f"model={NAME}", "dataset.limit=100", "optimizer.schedule=constant")
    assert genexp(*words, "trainer.epochs=4", in_folder(straight)).code == 0
    assert genexp(*words, "trainer.epochs=2", in_folder(resumed)).code == 0
    assert genexp(f"resume={resumed}", "trainer.epochs=4").code == 0
    assert_same_run(straight, resumed)
