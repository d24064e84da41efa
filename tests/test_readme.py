"""The README says what is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from genexp.data import list_datasets
from genexp.technique import list_techniques
from tests.support.command import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_its_tree_is_the_tree() -> None:
    spec = importlib.util.spec_from_file_location("readme_tree", REPOSITORY / "scripts" / "readme_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (written,) = module.TREE_PATTERN.findall(README)
    assert written == module.build_tree(), "run python scripts/readme_tree.py"


def test_it_names_every_technique_and_data_set() -> None:
    missing = [name for name in [*list_techniques(), *list_datasets()] if f"`{name}`" not in README]
    assert not missing


def test_its_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert [picture for picture in pictures if not (REPOSITORY / Path(picture)).is_file()] == []
