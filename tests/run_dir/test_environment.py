"""What the program says of where it runs, and what it asks of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genexp.run_dir.environment import read_git_commit
from genexp.run_dir.paths import format_command


def git(*words: str | Path) -> None:
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *identity, *words], check=True, capture_output=True)


def test_the_commit_is_that_of_the_checkout_and_of_no_other_around_it(tmp_path: Path) -> None:
    git("init", tmp_path)
    git("-C", tmp_path, "commit", "--allow-empty", "-m", "first")
    assert len(read_git_commit(tmp_path)) == 40
    (tmp_path / "installed").mkdir()
    assert read_git_commit(tmp_path / "installed") == "unknown"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the commands of an environment below the current folder."""
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name in ("python", "genexp"):
        (commands / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(commands / "python"))
    monkeypatch.setenv("PATH", "/bin")
    return commands


def test_a_command_is_shown_as_it_can_be_typed(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert format_command("genexp", "resume=a b") == ".venv/bin/genexp 'resume=a b'"
    assert format_command("absent", "--all") == "absent --all"
    monkeypatch.setenv("PATH", str(environment))  # as after `source .venv/bin/activate`
    assert format_command("genexp", "resume=a b") == "genexp 'resume=a b'"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing", "spins", "policy"],
)
def test_threads_that_wait_leave_the_cores_to_others(given: dict[str, str], spins: str) -> None:
    script = "import sys, genexp, os; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    plain = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run([sys.executable, "-c", script], env=plain | given, capture_output=True, text=True)
    assert done.stdout.strip() == spins, done.stderr
