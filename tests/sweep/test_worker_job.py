"""Thread variables of worker processes."""

from __future__ import annotations

import pytest

from genexp.sweep.worker_job import THREAD_VARIABLES, build_thread_env


def test_thread_variables_are_set_unless_the_user_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    assert build_thread_env(4) == {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}
    assert build_thread_env(0)["OMP_NUM_THREADS"] == "1"  # more jobs than cores
