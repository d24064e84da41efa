"""README files: length, links, module tree, commands, and lists of techniques and data sets."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from genexp.config import find_config_dir
from genexp.data import list_datasets
from genexp.technique import list_techniques
from tests.support.command import REPO_ROOT
from tests.support.compose import compose_config

SKIPPED_FOLDERS = {".venv", "runs", "sweeps", "node_modules", "build", "dist"}
DOCUMENTS = sorted(
    path for path in REPO_ROOT.rglob("*.md") if not SKIPPED_FOLDERS & set(path.relative_to(REPO_ROOT).parts)
)
README = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
LINK_PATTERN = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name_document(path: Path) -> str:
    """Return the path relative to the repository, as the name of a test case."""
    return path.relative_to(REPO_ROOT).as_posix()


def list_anchors(text: str) -> set[str]:
    """Return the anchors that a code host makes of the headings in `text`."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def list_commands(text: str) -> list[list[str]]:
    """Return the arguments of each `genexp` command in the code blocks of `text`, without comments."""
    blocks = re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("genexp ")]
    return [line[1:] for line in words if "…" not in line and "..." not in line]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_document)
def test_links_and_anchors_resolve(document: Path) -> None:
    broken = []
    for link in LINK_PATTERN.findall(document.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        if "://" in name:
            continue
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in list_anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_document)
def test_commands_compose(document: Path, tmp_path: Path) -> None:
    for arguments in list_commands(document.read_text(encoding="utf-8")):
        overrides = [word for word in arguments if "=" in word and not word.startswith(("-", "resume=", "hydra"))]
        if len(overrides) < len(arguments) and any(
            word.startswith(("--config-dir", "--plugin", "resume=")) for word in arguments
        ):
            continue  # needs files of the user
        compose_config(*(override for override in overrides if "," not in override and "(" not in override))


def test_module_tree_is_current() -> None:
    spec = importlib.util.spec_from_file_location("readme_tree", REPO_ROOT / "scripts" / "readme_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (written,) = module.TREE_PATTERN.findall((REPO_ROOT / "genexp" / "README.md").read_text(encoding="utf-8"))
    assert written == module.build_tree(), "run python scripts/readme_tree.py"


def test_every_technique_is_described() -> None:
    sections = (REPO_ROOT / "genexp" / "techniques" / "README.md").read_text(encoding="utf-8")
    assert [name for name in list_techniques() if f"`{name}`" not in README] == []
    assert [name for name in list_techniques() if f"\n## `{name}`\n" not in sections] == []


def test_every_dataset_is_described() -> None:
    table = (REPO_ROOT / "genexp" / "data" / "README.md").read_text(encoding="utf-8")
    assert [name for name in list_datasets() if f"`{name}`" not in table] == []


def test_every_group_is_described() -> None:
    text = (REPO_ROOT / "conf" / "README.md").read_text(encoding="utf-8")
    groups = [path.name for path in find_config_dir().iterdir() if path.is_dir() and path.name != "hydra"]
    assert [group for group in groups if f"| `{group}` |" not in text] == []
