"""Differences of two runs by group."""

from __future__ import annotations

from pathlib import Path

from genexp.reports.run_diff import diff_runs
from tests.support.run_dirs import make_run_dir


def test_differences_are_grouped_by_configuration_code_data_and_environment(tmp_path: Path) -> None:
    left = make_run_dir(tmp_path / "a", data={"train": "40 samples, checksum 1"})
    environment = {"device": "cuda", "torch": "2.13.0", "git_commit": "b" * 40}
    settings = {"optimizer.lr": 0.1, "dataset.limit": 7}
    data = {"train": "40 samples, checksum 2"}
    right = make_run_dir(tmp_path / "b", overrides=settings, environment=environment, data=data)
    difference = diff_runs(left, right)
    assert difference.sections["configuration"] == {"optimizer.lr": ("0.001", "0.1")}
    assert difference.sections["code"] == {"git_commit": ("a" * 40, "b" * 40)}
    assert difference.sections["data"] == {
        "dataset.limit": ("null", "7"),
        "train": ("40 samples, checksum 1", "40 samples, checksum 2"),
    }
    assert difference.sections["environment"] == {"device": ("cpu (1 thread)", "cuda")}
