"""Write the README's tree anew: every module with the first line of its docstring."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE_PATTERN = re.compile(r"(?<=<!-- tree -->\n```\n).*?(?=```\n<!-- /tree -->)", flags=re.DOTALL)
COMMENT_COLUMN = 34
DIRECTORY_COMMENTS = {
    "conf": "all that a user can set: one folder a group, one YAML file a choice, experiment/ for presets",
    "genexp": "",
    "genexp/benchmark": "",
    "genexp/clustering": "",
    "genexp/comparison": "",
    "genexp/data": "",
    "genexp/data/sources": "",
    "genexp/networks": "modules that take numbers, never a configuration",
    "genexp/metrics": "scores; weights/ holds the classifiers whose features generated images are compared in",
    "genexp/plugins/hydra_plugins": "where Hydra looks for launchers and sweepers; no __init__.py",
    "genexp/recorders": "what writes a run's folder; each receives snapshots, none sees the trainer",
    "genexp/sweep": "",
    "genexp/techniques": "one file a technique; the folder finds its files by itself",
    "genexp/tools": "",
    "scripts": "the commands, and the tools of the project, a few lines each",
    "tests": "they state behavior; test_contract.py runs on every technique",
    "outputs": "runs (ignored by git); gallery/ holds the README's pictures",
}


def build_tree() -> str:
    """Return the tree as text."""
    lines: list[str] = []
    for folder, comment in DIRECTORY_COMMENTS.items():
        path = ROOT / folder
        if not path.is_dir():
            continue
        depth = folder.count("/")
        package = path / "__init__.py"
        description = comment or (read_first_line(package) if package.is_file() else "")
        lines.append(format_entry(depth, f"{path.name}/", description))
        if folder.startswith(("genexp", "scripts")):
            modules = sorted(module for module in path.glob("*.py") if module.name != "__init__.py")
            lines += [format_entry(depth + 1, module.name, read_first_line(module)) for module in modules]
    return "\n".join(lines) + "\n"


def format_entry(depth: int, name: str, comment: str) -> str:
    """Return one line of the tree."""
    return f"{'  ' * depth + name:<{COMMENT_COLUMN}}{comment}".rstrip()


def read_first_line(module: Path) -> str:
    """Return the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def main() -> None:
    """Replace the tree in README.md."""
    readme = ROOT / "README.md"
    readme.write_text(
        TREE_PATTERN.sub(lambda match: build_tree(), readme.read_text(encoding="utf-8")), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
