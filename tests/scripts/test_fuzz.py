"""Some cases of the property-based test of the commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.command import REPO_ROOT

CASES = 2  # of each kind


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases run in forked processes")
def test_commands_succeed_or_end_with_one_line() -> None:
    script = REPO_ROOT / "scripts" / "fuzz.py"
    command = [
        sys.executable,
        str(script),
        "--models",
        "stacked_autoencoder",
        "--cases",
        str(CASES),
        "--seed",
        "3",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT), "PYTHONWARNINGS": "ignore"}
    environment.pop("HYDRA_FULL_ERROR", None)  # set by the commands in this process
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(f"{CASES} cases, 0 faults") == 4
