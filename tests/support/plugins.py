"""Plugin files: the example of genexp/README.md, and files with given content."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.command import REPO_ROOT

PLUGIN_RUN_OVERRIDES = ("dataset.limit=40", "trainer.batch_size=8", "trainer.checkpoint_spacing=0", "device=cpu")


def write_example_plugin(folder: Path) -> Path:
    """Write the example of genexp/README.md to `folder`/my_ideas.py and return the path."""
    text = (REPO_ROOT / "genexp" / "README.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"`my_ideas.py`:\n\n```python\n(.*?)```", text, flags=re.DOTALL)
    path = folder / "my_ideas.py"
    path.write_text(source, encoding="utf-8")
    return path


def write_plugin(folder: Path, source: str, name: str = "plugin") -> Path:
    """Write a plugin that starts with the usual imports, in line 1 and 2, and return its path."""
    path = folder / f"{name}.py"
    header = "from dataclasses import dataclass, field\nimport torch, genexp\n"
    path.write_text(header + source, encoding="utf-8")
    return path
