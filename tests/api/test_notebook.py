"""Notebook outputs/python_interface.ipynb: its cells run, and it is small and has no paths of a machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest

import genexp
from genexp.api.runs import RunTable, SavedRun
from tests.support.command import REPO_ROOT

NOTEBOOK = REPO_ROOT / "outputs" / "python_interface.ipynb"
FAST = (
    "dataset.limit=40",
    "trainer.batch_size=20",
    "trainer.checkpoint_spacing=0",
    "device=cpu",
    "recorders.console=false",
)


def read_cells() -> list[dict[str, Any]]:
    """Return the code cells."""
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = genexp.run
    monkeypatch.setattr(genexp, "run", lambda *overrides, **settings: train(*overrides, *FAST, **settings))
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    variables: dict[str, Any] = {}
    for cell in read_cells():
        *statements, last = "".join(cell["source"]).rsplit("\n", 1)
        exec("\n".join(statements), variables)
        exec(f"result = {last}" if not last.startswith("plt.") else last, variables)
    assert isinstance(variables["run"], SavedRun)
    assert "<img" in variables["run"]._repr_html_()
    assert isinstance(variables["result"], RunTable)
    assert [row["model.beta"] for row in variables["result"]].count(4.0) == 1
    plt.close("all")


def test_notebook_was_executed_and_is_small() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) <= 300_000
    assert all(cell["outputs"] for cell in read_cells())
    assert [cell["execution_count"] for cell in read_cells()] == list(range(1, len(read_cells()) + 1))
    found = re.search(r"(?<![\\w./])/(?:home|root|tmp|Users|work)/", re.sub(r"base64,[^\\\"]*", "", text))
    assert found is None, found
    assert "data:image/png;base64," in text
