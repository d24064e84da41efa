"""Schema of `status.json`: what is written is read back, and damaged files are one error."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from genexp.errors import DataError
from genexp.run_dir.status import (
    BestScore,
    RunStatus,
    read_job_status,
    read_status,
    record_failure,
    write_status,
)
from tests.support.command import load_status

STATUS = RunStatus(
    "stopped",
    model="vae",
    dataset="digits",
    step=10,
    total_steps=40,
    epoch=2,
    train={"loss": 0.5},
    test={"psnr": 12.0},
    objective="psnr",
    best=BestScore(12.5, 5),
    warnings=("collapse",),
    started="2026-01-01T00:00:00+00:00",
    seconds=1.5,
    environment={"device": "cpu"},
    data={"train": "40 samples"},
)


def test_written_status_is_read_back(tmp_path: Path) -> None:
    write_status(tmp_path, STATUS)
    found = read_status(tmp_path)
    assert found is not None
    assert found.updated.endswith("+00:00")
    assert {**vars(found), "updated": ""} == vars(STATUS)
    assert (found.fraction_done, found.objective_value) == (0.25, 12.0)


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_status(tmp_path, RunStatus("running", train={"loss": math.nan}, test={"psnr": -math.inf}))
    assert (load_status(tmp_path)["train"], load_status(tmp_path)["test"]) == ({"loss": None}, {"psnr": None})


@pytest.mark.parametrize(
    "change",
    [
        {"state": "dancing"},
        {"state": "finished", "step": "ten"},
        {"step": 10**400},
        {"step": True},
        {"total_steps": 1.5},
        {"train": [1.0]},
        {"test": {"psnr": "high"}},
        {"test": {"psnr": 10**400}},
        {"best": 3},
        {"best": {"value": 1.0}},
        {"warnings": "collapse"},
        {"warnings": [1]},
        {"error": {}},
        {"environment": {"device": 1}},
        {"seconds": "long"},
    ],
)
def test_a_value_of_another_type_is_one_error(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", **change}))
    with pytest.raises(DataError, match=r"status\.json: damaged") as caught:
        read_status(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert read_job_status(tmp_path).state == "waiting"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": "ten"}, "step is 'ten', not an integer"),
        ({"total_steps": 1.5}, "total_steps is 1.5, not an integer or null"),
        ({"state": "dancing"}, "state is 'dancing', not one of "),
        ({"warnings": "collapse"}, "warnings is 'collapse', not a list"),
        ({"train": [1.0]}, "train is [1.0], not an object"),
    ],
)
def test_damage_is_described_by_what_is_expected(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", **change}))
    with pytest.raises(DataError, match=re.escape(reason)):
        read_status(tmp_path)


def test_status_without_a_state_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(DataError, match="no state"):
        read_status(tmp_path)


def test_failure_of_a_job_that_wrote_no_status_has_its_settings(tmp_path: Path) -> None:
    config = {"model": {"name": "vae"}, "dataset": {"name": "digits"}, "trainer": {"objective": "test/elbo"}}
    record_failure(tmp_path, config, "no memory")
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.error) == ("failed", "no memory")
    assert (found.model, found.dataset, found.objective) == ("vae", "digits", "elbo")


def test_failure_keeps_the_other_fields(tmp_path: Path) -> None:
    write_status(tmp_path, STATUS)
    record_failure(tmp_path, {}, "no memory")
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.step, found.best) == ("failed", STATUS.step, STATUS.best)


def test_job_status_of_an_earlier_attempt_is_waiting_unless_finished(tmp_path: Path) -> None:
    for state, expected in (("running", "waiting"), ("failed", "waiting"), ("finished", "finished")):
        write_status(tmp_path, RunStatus(state, error="x" if state == "failed" else None))  # type: ignore[arg-type]
        os.utime(tmp_path / "status.json", (100, 100))
        found = read_job_status(tmp_path, min_mtime=200)
        assert (found.state, found.error) == (expected, None)
