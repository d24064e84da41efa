"""Git commit of the installed package."""

from __future__ import annotations

import subprocess
from pathlib import Path

from genexp.run_dir.environment import read_git_commit


def run_git(*arguments: str | Path) -> None:
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def test_git_commit_is_unknown_below_the_repository_root(tmp_path: Path) -> None:
    run_git("init", tmp_path)
    run_git("-C", tmp_path, "commit", "--allow-empty", "-m", "first")
    run_git("-C", tmp_path, "tag", "-a", "v1.0", "-m", "release")
    assert len(read_git_commit(tmp_path)) == 40  # the commit, not the tag
    (tmp_path / "installed").mkdir()
    assert read_git_commit(tmp_path / "installed") == "unknown"
