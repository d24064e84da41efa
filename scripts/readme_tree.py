"""Generator of the module tree in genexp/README.md: every module with the first line of its docstring."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE_PATTERN = re.compile(r"(?<=<!-- tree -->\n```\n).*?(?=```\n<!-- /tree -->)", flags=re.DOTALL)
COMMENT_COLUMN = 34
# Directories without a package docstring.
DIRECTORY_COMMENTS = {
    "genexp/techniques": "techniques, one file each; files with a leading underscore are shared code",
    "genexp/plugins/hydra_plugins": "namespace package where Hydra finds launchers and sweepers",
}


def build_tree() -> str:
    """Return the tree as text, one line per directory or module."""
    directories = sorted({path.parent for path in (ROOT / "genexp").rglob("*.py")})
    lines = []
    for directory in directories:
        lines.append(format_directory(directory.relative_to(ROOT).as_posix()))
        depth = len(directory.relative_to(ROOT).parts)
        modules = sorted(module for module in directory.glob("*.py") if module.name != "__init__.py")
        lines += [format_entry(depth, module.name, read_first_line(module)) for module in modules]
    return "\n".join(lines) + "\n"


def format_directory(name: str) -> str:
    """Return the line of a directory: its comment, or the first line of its package's docstring."""
    package = ROOT / name / "__init__.py"
    description = DIRECTORY_COMMENTS.get(name) or read_first_line(package)
    return format_entry(name.count("/"), f"{Path(name).name}/", description)


def format_entry(depth: int, name: str, comment: str) -> str:
    """Return one line of the tree, with the comment aligned to COMMENT_COLUMN."""
    return f"{'  ' * depth + name:<{COMMENT_COLUMN}}{comment}".rstrip()


def read_first_line(module: Path) -> str:
    """Return the first line of a module's docstring, without its period."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def main() -> None:
    """Replace the tree in genexp/README.md."""
    readme = ROOT / "genexp" / "README.md"
    readme.write_text(
        TREE_PATTERN.sub(lambda match: build_tree(), readme.read_text(encoding="utf-8")), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
