"""Reading of `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genexp.errors import DataError
from genexp.run_dir.metrics import find_metric, read_metrics


def test_read_metrics_returns_columns_and_skips_a_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "epoch": 1, "split": "train", "loss": 2.0}\n'
        '{"step": 2, "epoch": 1, "split": "train", "loss": 1.0, "kl": 3}\n'
        '{"step": 2, "epoch": 1, "split": "test", "psnr": 9.5}\n'
        '{"step": 3, "epoch": 2, "split": "tr'
    )
    metrics = read_metrics(tmp_path)
    assert metrics["train"]["loss"].values.tolist() == [2.0, 1.0]
    assert metrics["train"]["kl"].steps.tolist() == [2]
    assert metrics["test"]["psnr"].epochs.tolist() == [1]


def test_read_metrics_returns_nothing_without_a_log(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == {}


@pytest.mark.parametrize("line", [b"oops", b"\xff\xfe", b"[" * 100_000, b'{"step": ' + b"1" * 5000 + b"}"])
def test_read_metrics_reports_the_damaged_line(line: bytes, tmp_path: Path) -> None:
    content = b'{"step": 1, "epoch": 1, "split": "train", "loss": 2.0}\n' + line + b"\n"
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="line 2") as caught:
        read_metrics(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        [],
        "text",
        None,
        {"step": 10**400, "epoch": 1, "split": "train", "loss": 1.0},
        {"step": 1.5, "epoch": 1, "split": "train", "loss": 1.0},
        {"step": 1, "epoch": None, "split": "train", "loss": 1.0},
        {"step": 1, "epoch": 1, "split": ["train"], "loss": 1.0},
        {"step": 1, "epoch": 1, "split": 3, "loss": 1.0},
        {"step": 1, "epoch": 1, "split": "train", "loss": "high"},
        {"step": 1, "epoch": 1, "split": "train", "loss": 10**400},
        {"epoch": 1, "split": "train", "loss": 1.0},
    ],
)
def test_read_metrics_rejects_a_row_of_wrong_types(row: object, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="not a metrics record") as caught:
        read_metrics(tmp_path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "metrics", "found"),
    [
        ("mse", ["mse", "mse_x-v1"], "mse"),
        ("frechet", ["frechet_mnist-v1", "reconstruction_frechet"], "frechet_mnist-v1"),
        ("frechet", ["frechet_pixels8-v1"], "frechet_pixels8-v1"),
        ("frechet", ["frechet_digits-5b492abb"], "frechet_digits-5b492abb"),
        ("frechet", ["frechet_mnist-v1", "frechet_mnist-v2"], None),
        ("frechet", ["frechet_floor"], None),
        ("f.*", ["frechet_mnist-v1"], None),
    ],
)
def test_metric_is_found_without_its_version(name: str, metrics: list[str], found: str | None) -> None:
    assert find_metric(name, metrics) == found
