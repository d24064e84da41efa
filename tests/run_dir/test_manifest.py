"""Manifest of a sweep: what is written is read back, and damaged files are one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genexp.errors import ConfigError, DataError
from genexp.run_dir.manifest import JobEntry, SweepManifest

ENTRIES = (JobEntry(0, "aa", ("seed=0",), "min"), JobEntry(1, "bb", ("seed=1",), "max"))


def write_manifest(sweep_dir: Path) -> None:
    manifest = SweepManifest(sweep_dir)
    for entry in reversed(ENTRIES):
        manifest.register(entry)
    manifest.halted_job_numbers = {1}
    manifest.write()


def test_written_manifest_is_read_back(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    found = SweepManifest(tmp_path)
    assert found.entries == list(ENTRIES)
    assert found.halted_job_numbers == {1}
    assert SweepManifest(tmp_path / "absent").entries == []


def test_equal_job_keeps_its_number_and_another_job_needs_another(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    manifest = SweepManifest(tmp_path)
    assert manifest.register(JobEntry(7, "aa", ("seed=0",), "min")) == ENTRIES[0]
    with pytest.raises(ConfigError, match="job 0 was seed=0, now seed=5"):
        manifest.register(JobEntry(0, "cc", ("seed=5",), "min"))


@pytest.mark.parametrize(
    "change",
    [
        {"jobs": {}},
        {"jobs": [1]},
        {"jobs": [{"number": "0"}]},
        {"jobs": [{"number": 0, "digest": "aa", "overrides": [], "direction": "up"}]},
        {"jobs": [{"number": 10**30, "digest": "aa", "overrides": [], "direction": "min"}]},
        {"jobs": [{"number": -1, "digest": "aa", "overrides": [], "direction": "min"}]},
        {"jobs": [{"number": 0, "digest": "aa", "overrides": [], "direction": "min"}] * 2},
        {"halted": ["0"]},
    ],
)
def test_damaged_manifest_is_one_error(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": [], **change}))
    with pytest.raises(DataError, match=r"sweep\.json: damaged") as caught:
        SweepManifest(tmp_path)
    assert "\n" not in str(caught.value)
