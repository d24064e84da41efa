"""Paths in words."""

from __future__ import annotations

from pathlib import Path


def shown_path(path: Path) -> str:
    """Return `path` as a user here would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
