"""What the program says of where it runs, and what it asks of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genexp.run_dir.environment import read_git_commit
from genexp.run_dir.paths import format_command


def run_git(*arguments: str | Path) -> None:
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def test_git_commit_is_unknown_below_the_repository_root(tmp_path: Path) -> None:
    run_git("init", tmp_path)
    run_git("-C", tmp_path, "commit", "--allow-empty", "-m", "first")
    assert len(read_git_commit(tmp_path)) == 40
    (tmp_path / "installed").mkdir()
    assert read_git_commit(tmp_path / "installed") == "unknown"


@pytest.fixture
def venv_bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the commands of an environment below the current folder."""
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


@pytest.mark.parametrize(
    ("variables", "spin_count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing", "spins", "policy"],
)
def test_openmp_spin_count_is_limited_unless_set(variables: dict[str, str], spin_count: str) -> None:
    script = "import sys, genexp, os; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    plain = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    result = subprocess.run([sys.executable, "-c", script], env=plain | variables, capture_output=True, text=True)
    assert result.stdout.strip() == spin_count, result.stderr
