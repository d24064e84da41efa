"""`genexp-diff`: differing settings and the first step with different metrics."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from genexp.cli.diff import main
from genexp.reports.run_diff import diff_runs
from tests.support.command import CommandResult, format_run_dir_override, load_status, run_genexp, run_main
from tests.support.compose import make_tiny_overrides
from tests.support.run_dirs import make_run_dir


def run_diff(*arguments: str | Path) -> CommandResult:
    return run_main("genexp-diff", main, *map(str, arguments))


def update_metrics_line(run: Path, step: int, split: str, **values: float | None) -> None:
    """Replace values in a line of a run's metrics log."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if (row["step"], row["split"]) == (step, split):
            row.update(values)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_first_step_with_different_metrics_is_reported(tmp_path: Path) -> None:
    left, right = make_run_dir(tmp_path / "a"), make_run_dir(tmp_path / "b", steps=40)
    for run in (left, right):
        update_metrics_line(run, 3, "train", loss=None)  # equal NaNs do not count as a difference
    update_metrics_line(right, 17, "train", loss=0.5)
    update_metrics_line(right, 30, "train", loss=0.25)
    update_metrics_line(right, 40, "test", psnr=1.0)
    difference = diff_runs(left, right)
    assert [(metric.metric, metric.step) for metric in difference.metric_differences if metric.is_different] == [
        ("train/loss", 17),
        ("test/psnr", 40),
    ]
    result = run_diff(left, right)
    assert result.exit_code == 0
    assert "metrics differ from step 17: train/loss is " in result.stdout
    assert " and 0.5" in result.stdout
    assert "configuration: no difference" in result.stdout


def test_identical_runs_have_no_differences(tmp_path: Path) -> None:
    left, right = make_run_dir(tmp_path / "a"), make_run_dir(tmp_path / "b")
    assert "metrics are equal at all 40 common steps" in run_diff(left, right).stdout
    content = json.loads(run_diff("--json", left, right).stdout)
    assert content["configuration"] == content["code"] == content["data"] == content["environment"] == {}


def test_invalid_arguments_fail_with_one_line(tmp_path: Path) -> None:
    run = make_run_dir(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    damaged = make_run_dir(tmp_path / "damaged")
    (damaged / "metrics.jsonl").write_text("{\n")
    for arguments, message in (
        ([run, tmp_path / "empty"], "not a run directory"),
        ([run], "required: RUN_B"),
        ([run, damaged], "line 1: not JSON"),
    ):
        result = run_diff(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("genexp-diff: ")
        assert message in line


def test_runs_without_a_common_metric_are_reported(tmp_path: Path) -> None:
    left, right = make_run_dir(tmp_path / "a"), make_run_dir(tmp_path / "b", overrides={"model.name": "kmeans"})
    (right / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "split": "train", "inertia": 3.0}\n')
    result = run_diff(left, right)
    assert "no common metric: " in result.stdout
    assert "(kmeans) has train/inertia" in result.stdout


def test_a_killed_run_can_be_compared(tmp_path: Path) -> None:
    left, right = make_run_dir(tmp_path / "a"), make_run_dir(tmp_path / "b")
    (right / "status.json").unlink()
    log = right / "metrics.jsonl"
    log.write_text(log.read_text()[:500])
    result = run_diff(left, right)
    assert result.exit_code == 0
    assert "metrics are equal at all" in result.stdout


def test_runs_with_different_seeds_differ_from_step_1(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        overrides = (
            *make_tiny_overrides("vae"),
            "trainer.epochs=1",
            f"seed={seed}",
            format_run_dir_override(tmp_path / name),
        )
        assert run_genexp(*overrides).exit_code == 0
    assert load_status(tmp_path / "a")["data"] == load_status(tmp_path / "b")["data"]
    assert "metrics are equal" in run_diff(tmp_path / "a", tmp_path / "b").stdout
    assert "metrics differ from step 1:" in run_diff(tmp_path / "a", tmp_path / "c").stdout


def test_diff_does_not_import_torch(tmp_path: Path) -> None:
    run = make_run_dir(tmp_path / "run")
    code = "import sys; from genexp.cli.diff import _run; _run(sys.argv[1:]); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code, str(run), str(run)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
