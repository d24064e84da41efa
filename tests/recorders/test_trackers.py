"""Recorders of Weights & Biases and MLflow: what they log without a network, also after a resume."""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import (
    TINY_RUN_OVERRIDES,
    CommandResult,
    format_run_dir_override,
    get_error_line,
    read_metrics_log,
    run_genexp,
)

BLOCK_BYTES, FILE_HEADER_BYTES, RECORD_HEADER_BYTES = 2**15, 7, 7  # of W&B's log, which has the format of LevelDB
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra wandb")
needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use no network."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb_config"),
        "WANDB_CACHE_DIR": str(tmp_path / "wandb_cache"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }.items():
        monkeypatch.setenv(name, value)


def run(run_dir: Path, *overrides: str) -> CommandResult:
    """Run two epochs of an autoencoder, without other recorders."""
    others = [f"recorders.{name}=false" for name in ("figures", "tensorboard", "report", "console")]
    command = ("model=stacked_autoencoder", *TINY_RUN_OVERRIDES, "trainer.batch_size=20", *others)
    return run_genexp(*command, "trainer.epochs=2", "tags=[word]", *overrides, format_run_dir_override(run_dir))


def read_expected(run_dir: Path) -> dict[tuple[str, int], float]:
    """Return (metric, step) → value of the log of a run."""
    return {
        (f"{row['split']}/{name}", row["step"]): value
        for row in read_metrics_log(run_dir)
        for name, value in row.items()
        if name not in ("step", "epoch", "split")
    }


def iter_wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run of W&B."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), FILE_HEADER_BYTES, []
    while position + RECORD_HEADER_BYTES <= len(data):
        left_in_block = BLOCK_BYTES - position % BLOCK_BYTES
        if left_in_block < RECORD_HEADER_BYTES:
            position += left_in_block
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + RECORD_HEADER_BYTES])
        position += RECORD_HEADER_BYTES
        parts.append(data[position : position + size])
        position += size
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            yield record
            parts.clear()


def read_wandb_files(run_dir: Path) -> tuple[list[str], dict[tuple[str, int], float], set[str]]:
    """Return the identifiers, (metric, step) → value, and the names of the images of all offline runs."""
    ids: list[str] = []
    values: dict[tuple[str, int], float] = {}
    images: set[str] = set()
    for path in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb")):
        for record in iter_wandb_records(path):
            if record.WhichOneof("record_type") == "run" and record.run.run_id not in ids[-1:]:
                ids.append(record.run.run_id)
            for item in record.history.item:
                name, *fields = item.nested_key
                if fields:
                    images.add(name)
                elif "/" in name:
                    values[name, record.history.step.num] = json.loads(item.value_json)
    return ids, values, images


@needs_wandb
def test_wandb_has_the_metrics_of_a_resumed_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = run(run_dir, "recorders.wandb.project=mine")
    assert result.exit_code == 0, result.stderr
    result = run_genexp(f"resume={run_dir}", "trainer.epochs=3")
    assert result.exit_code == 0, result.stderr
    ids, values, images = read_wandb_files(run_dir)
    assert len(ids) == 1  # the resumed run has the same identifier
    assert ids[0] == json.loads((run_dir / "wandb.json").read_text())["id"]
    assert values == pytest.approx(read_expected(run_dir), rel=1e-6)
    assert "preview/reconstructions" in images
    result = run_genexp(f"resume={run_dir}", "trainer.epochs=4", "recorders.wandb=false")
    assert result.exit_code == 0, result.stderr  # commands accept the files of W&B in a run directory


@needs_mlflow
def test_mlflow_has_the_metrics_of_a_resumed_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run_dir, uri = tmp_path / "run", (tmp_path / "store").as_uri()
    result = run(run_dir, f"recorders.mlflow.tracking_uri='{uri}'", "recorders.mlflow.experiment=mine")
    assert result.exit_code == 0, result.stderr
    result = run_genexp(f"resume={run_dir}", "trainer.epochs=3")
    assert result.exit_code == 0, result.stderr
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert found.info.run_id == json.loads((run_dir / "mlflow.json").read_text())["id"]
    assert found.info.status == "FINISHED"
    assert found.data.params["model.name"] == "stacked_autoencoder"
    assert found.data.tags["tag.word"] == "true"
    expected = read_expected(run_dir)
    points = [
        (name, point.step, point.value)
        for name in found.data.metrics
        for point in client.get_metric_history(found.info.run_id, name)
    ]
    assert len(points) == len(expected)  # none twice
    assert {(name, step): value for name, step, value in points} == pytest.approx(expected, rel=1e-6)
    assert client.list_artifacts(found.info.run_id, "previews/reconstructions")


@needs_mlflow
def test_mlflow_logs_no_step_twice_after_a_kill(tmp_path: Path) -> None:
    """A run that resumes from an earlier checkpoint repeats steps that MLflow has."""
    from mlflow.tracking import MlflowClient

    run_dir, uri = tmp_path / "run", (tmp_path / "store").as_uri()
    overrides = ("trainer.epochs=3", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=3")
    assert run(run_dir, f"recorders.mlflow.tracking_uri='{uri}'", *overrides).exit_code == 0
    max(run_dir.glob("checkpoints/step-*.pt")).unlink()
    result = run_genexp(f"resume={run_dir}")
    assert result.exit_code == 0, result.stderr
    run_id = json.loads((run_dir / "mlflow.json").read_text())["id"]
    history = MlflowClient(uri).get_metric_history(run_id, "train/loss")
    assert sorted(point.step for point in history) == [1, 2, 3, 4, 5, 6]


@needs_mlflow
def test_mlflow_without_a_store_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    line = get_error_line(run(tmp_path / "run", "recorders.mlflow.tracking_uri=unknown://host"), "genexp")
    assert "recorders.mlflow: not started" in line
    assert run_genexp(f"resume={tmp_path / 'run'}", "recorders.mlflow=false").exit_code in (0, 1)


@needs_mlflow
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:1: no connection ("),
        ("sqlite:////absent/x.db", "/absent is not a writable directory"),
    ],
)
def test_absent_store_of_mlflow_is_reported_at_once(uri: str, message: str, tmp_path: Path) -> None:
    started = time.monotonic()
    line = get_error_line(run(tmp_path / "run", f"recorders.mlflow.tracking_uri={uri}"), "genexp")
    assert f"recorders.mlflow.tracking_uri={uri}: " in line
    assert message in line
    assert time.monotonic() - started < 60


@needs_wandb
def test_unknown_mode_of_wandb_is_one_line(tmp_path: Path) -> None:
    line = get_error_line(run(tmp_path / "run", "recorders.wandb.mode=ofline"), "genexp")
    assert "recorders.wandb.mode=ofline: must be one of online, offline" in line


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_extra_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda found: None if found == name else find_spec(found))
    line = get_error_line(run(tmp_path / "run", f"recorders.{name}=true"), "genexp")
    assert f"recorders.{name}=True: requires the package {name}. Run `pip install 'genexp[{name}]'`." in line
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert run(tmp_path / "run", f"recorders.{name}=false").exit_code == 0


def test_options_of_trackers_are_checked(tmp_path: Path) -> None:
    line = get_error_line(run(tmp_path / "run", "recorders.wandb.projct=a"), "genexp")
    assert "recorders.wandb.projct=a: unknown option. Did you mean project?" in line
