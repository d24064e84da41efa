"""README: directory tree, lists of techniques and data sets, and images."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from genexp.data import list_datasets
from genexp.technique import list_techniques
from tests.support.command import REPO_ROOT

README = (REPO_ROOT / "README.md").read_text(encoding="utf-8")


def test_tree_matches_the_repository() -> None:
    spec = importlib.util.spec_from_file_location("readme_tree", REPO_ROOT / "scripts" / "readme_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (written,) = module.TREE_PATTERN.findall(README)
    assert written == module.build_tree(), "run python scripts/readme_tree.py"


def test_every_technique_and_dataset_is_listed() -> None:
    missing = [name for name in [*list_techniques(), *list_datasets()] if f"`{name}`" not in README]
    assert not missing


def test_linked_images_exist() -> None:
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert images
    assert [image for image in images if not (REPO_ROOT / Path(image)).is_file()] == []
