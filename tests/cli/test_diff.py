"""`genexp-diff`: in what two runs differ, and where their metrics part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from genexp.cli import diff as command
from genexp.data.dataset import Dataset, Split, fingerprint
from genexp.reports.run_diff import diff_runs
from tests.support.command import Ended, called, genexp, in_folder, status
from tests.support.compose import tiny
from tests.support.run_dirs import make_run


def genexp_diff(*words: str | Path) -> Ended:
    return called("genexp-diff", command.main, *map(str, words))


def change_line(run: Path, step: int, split: str, **values: float | None) -> None:
    """Write other values into a line of a run's metrics."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if (row["step"], row["split"]) == (step, split):
            row.update(values)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_first_step_where_metrics_part_is_named(tmp_path: Path) -> None:
    left, right = make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=40)
    for run in (left, right):
        change_line(run, 3, "train", loss=None)  # the same NaN parts nothing
    change_line(right, 17, "train", loss=0.5)
    change_line(right, 30, "train", loss=0.25)
    change_line(right, 40, "test", psnr=1.0)
    difference = diff_runs(left, right)
    assert [(metric.metric, metric.step) for metric in difference.metric_differences if metric.is_different] == [
        ("train/loss", 17),
        ("test/psnr", 40),
    ]
    ended = genexp_diff(left, right)
    assert ended.code == 0
    assert "the metrics part at step 17: train/loss is " in ended.out
    assert "against 0.5" in ended.out
    assert "configuration: the same" in ended.out


def test_the_same_run_is_the_same(tmp_path: Path) -> None:
    left, right = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert "the metrics are the same at all 40 steps" in genexp_diff(left, right).out
    content = json.loads(genexp_diff("--json", left, right).out)
    assert content["configuration"] == content["code"] == content["data"] == content["environment"] == {}


def test_configuration_code_data_and_environment_are_told_apart(tmp_path: Path) -> None:
    left = make_run(tmp_path / "a", data={"train": "40 samples, checksum 1"})
    environment = {"device": "cuda", "torch": "2.13.0", "git_commit": "b" * 40}
    settings = {"optimizer.lr": 0.1, "dataset.limit": 7}
    data = {"train": "40 samples, checksum 2"}
    right = make_run(tmp_path / "b", settings=settings, environment=environment, data=data)
    difference = diff_runs(left, right)
    assert difference.configuration == {"optimizer.lr": ("0.001", "0.1")}
    assert difference.code == {"git_commit": ("a" * 40, "b" * 40)}
    assert difference.data == {
        "dataset.limit": ("null", "7"),
        "train": ("40 samples, checksum 1", "40 samples, checksum 2"),
    }
    assert difference.environment == {"device": ("cpu (1 thread)", "cuda")}


def test_bad_input_ends_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    damaged = make_run(tmp_path / "damaged")
    (damaged / "metrics.jsonl").write_text("{\n")
    for words, said in (
        ([run, tmp_path / "empty"], "is no run's folder"),
        ([run], "required: RUN_B"),
        ([run, damaged], "line 1 is no JSON"),
    ):
        ended = genexp_diff(*words)
        assert (ended.code, ended.out) == (1, "")
        (line,) = ended.err.splitlines()
        assert line.startswith("genexp-diff: ")
        assert said in line


def test_runs_without_a_common_metric_are_said_to_be(tmp_path: Path) -> None:
    left, right = make_run(tmp_path / "a"), make_run(tmp_path / "b", settings={"model.name": "kmeans"})
    (right / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "split": "train", "inertia": 3.0}\n')
    ended = genexp_diff(left, right)
    assert "no metric in common: " in ended.out
    assert "(kmeans) has train/inertia" in ended.out


def test_a_killed_run_can_be_compared(tmp_path: Path) -> None:
    left, right = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (right / "status.json").unlink()
    log = right / "metrics.jsonl"
    log.write_text(log.read_text()[:500])
    ended = genexp_diff(left, right)
    assert ended.code == 0
    assert "the metrics are the same at all" in ended.out


def test_real_runs_part_where_their_seeds_do(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = (*tiny("vae"), "trainer.epochs=1", f"seed={seed}", in_folder(tmp_path / name))
        assert genexp(*words).code == 0
    assert status(tmp_path / "a")["data"] == status(tmp_path / "b")["data"]
    assert "the metrics are the same" in genexp_diff(tmp_path / "a", tmp_path / "b").out
    assert "the metrics part at step 1:" in genexp_diff(tmp_path / "a", tmp_path / "c").out


def test_a_fingerprint_knows_other_data() -> None:
    images = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(50)

    def taken(pixels: torch.Tensor) -> dict[str, str]:
        split = Split({"image": pixels, "label": labels})
        return fingerprint(Dataset("some", split, split))

    other = images.clone()
    other[17, 0, 2, 2] += 1
    assert taken(images) == taken(images.clone())
    assert taken(images) != taken(other)
    assert taken(images)["train"].startswith("50 samples, checksum ")


def test_it_starts_without_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    code = "import sys; from genexp.cli.diff import _run; _run(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(run), str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
