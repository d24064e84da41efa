"""Environment variables set by the import of the package."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


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
