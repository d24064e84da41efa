"""Reading of `metrics.jsonl`."""

from __future__ import annotations

from pathlib import Path

import pytest

from genexp.errors import DataError
from genexp.run_dir.metrics import read_metrics


def test_read_metrics_returns_columns_and_skips_a_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "epoch": 1, "split": "train", "loss": 2.0}\n'
        '{"step": 2, "epoch": 1, "split": "train", "loss": 1.0, "kl": 3}\n'
        '{"step": 2, "epoch": 1, "split": "test", "psnr": 9.5}\n'
        '{"step": 3, "epoch": 2, "split": "tr'
    )
    metrics = read_metrics(path)
    assert metrics["train"]["loss"].values.tolist() == [2.0, 1.0]
    assert metrics["train"]["kl"].steps.tolist() == [2]
    assert metrics["test"]["psnr"].epochs.tolist() == [1]


def test_read_metrics_reports_the_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "epoch": 1, "split": "train", "loss": 2.0}\noops\n')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)
