"""Command `genexp-new`: the technique that it writes trains, its test passes, and mistakes are one line."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from genexp.cli import new
from genexp.registry import set_plugins
from tests.support.command import get_error_line, run_main


@pytest.fixture(autouse=True)
def _remove_plugins() -> Iterator[None]:
    yield
    set_plugins([])


def test_test_of_a_new_technique_passes(tmp_path: Path) -> None:
    result = run_main("genexp-new", new.main, "technique", "my_method", "--dir", str(tmp_path / "new"))
    assert result.exit_code == 0, result.stderr
    assert "genexp --plugin " in result.stdout
    tests = runpy.run_path(str(tmp_path / "new" / "test_my_method.py"))
    for name in ("test_training_lowers_the_error", "test_resumed_run_equals_an_uninterrupted_one"):
        (tmp_path / name).mkdir()
        tests[name](tmp_path / name)


def test_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("kept")
    line = get_error_line(
        run_main("genexp-new", new.main, "technique", "mine", "--dir", str(tmp_path)), "genexp-new"
    )
    assert "test_mine.py: already exists" in line
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["technique", "3d"],
        ["technique", "a-b"],
        ["technique", "class"],
        ["technique", "vae"],
        ["technique", "torch"],
        ["loss", "a"],
        [],
    ],
)
def test_mistakes_are_one_line(arguments: list[str]) -> None:
    get_error_line(run_main("genexp-new", new.main, *arguments), "genexp-new")
