"""Commands printed for the user."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from genexp.run_dir.paths import format_command


@pytest.fixture
def venv_bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the bin directory of a virtual environment below the working directory."""
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name in ("python", "genexp"):
        (commands / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(commands / "python"))
    monkeypatch.setenv("PATH", "/bin")
    return commands


def test_format_command_returns_a_runnable_command(venv_bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert format_command("genexp", "resume=a b") == ".venv/bin/genexp 'resume=a b'"
    assert format_command("absent", "--all") == "absent --all"
    monkeypatch.setenv("PATH", str(venv_bin_dir))  # as after `source .venv/bin/activate`
    assert format_command("genexp", "resume=a b") == "genexp 'resume=a b'"
