"""`genexp-compare`: a table of any runs, and what it may say about them."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from scipy.stats import ttest_rel

from genexp.cli import compare as command
from genexp.config import find_config_dir
from genexp.reports import compare, print_comparison
from tests.support.command import Ended, called
from tests.support.run_dirs import make_run

# Runs the command, and fails where torch or what takes as long to import came with it.
LIGHT = """
import sys
from genexp.cli.compare import main
try:
    main()
except SystemExit as ending:
    assert not ending.code, ending.code
heavy = {"torch", "hydra", "matplotlib", "scipy.stats", "tensorboardX"} & set(sys.modules)
assert not heavy, heavy
"""
RATES = {0.001: (0.30, 0.32, 0.31), 0.003: (0.20, 0.21, 0.22)}  # optimizer.lr → mse of seeds 0, 1, 2


def genexp_compare(*words: str | Path) -> Ended:
    return called("genexp-compare", command.main, *map(str, words))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep of two learning rates and three seeds."""
    jobs = [(rate, seed, mse) for rate, scores in RATES.items() for seed, mse in enumerate(scores)]
    for number, (rate, seed, mse) in enumerate(jobs):
        settings = {"optimizer.lr": rate, "seed": seed}
        make_run(tmp_path / "sweep" / str(number), {"mse": mse, "psnr": 10 / mse}, settings=settings)
    return tmp_path / "sweep"


def test_runs_are_sorted_by_their_objective_with_what_differs(sweep: Path) -> None:
    comparison = compare([sweep])
    assert [run.name for run in comparison.runs] == ["3", "4", "5", "0", "2", "1"]
    assert comparison.differing_keys == ("optimizer.lr",)
    assert comparison.metrics == ("mse", "psnr")
    ended = genexp_compare(sweep)
    assert ended.code == 0
    assert ended.err == ""
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["3", "0.003", "0", "0.2", "50", "0.2", "0:01:30", "finished"] in rows


def test_the_highest_comes_first_where_more_is_better(tmp_path: Path) -> None:
    wish = {"trainer.objective": "test/psnr", "trainer.direction": "max"}
    for number, psnr in enumerate((11.0, 13.0, 12.0)):
        settings = {**wish, "model.latent": 2 + number}
        make_run(tmp_path / str(number), {"mse": 0.1, "psnr": psnr}, settings=settings)
    comparison = compare([tmp_path])
    assert [run.name for run in comparison.runs] == ["1", "2", "0"]
    assert comparison.metrics[0] == "psnr"


def test_seeds_are_taken_together_and_tested_in_pairs(sweep: Path) -> None:
    comparison = compare([sweep])
    first, second = comparison.groups
    assert (first.label, second.label) == ("optimizer.lr=0.003", "optimizer.lr=0.001")
    mean = first.mean_score("mse")
    assert mean is not None
    assert mean.mean == pytest.approx(0.21)
    assert mean.error == pytest.approx(0.01 / 3**0.5)
    assert mean.n == 3
    found = comparison.t_test
    assert found is not None
    assert found.p == pytest.approx(ttest_rel(RATES[0.003], RATES[0.001]).pvalue)
    assert found.differs
    assert "more than the noise (paired t-test on 3 common seeds" in genexp_compare(sweep).out


def test_what_is_no_more_than_noise_is_called_so(tmp_path: Path) -> None:
    for latent, scores in {2: (0.1, 0.3, 0.2), 4: (0.3, 0.1, 0.21)}.items():
        for seed, mse in enumerate(scores):
            make_run(tmp_path / f"{latent}-{seed}", {"mse": mse}, settings={"model.latent": latent, "seed": seed})
    found = compare([tmp_path]).t_test
    assert found is not None
    assert found.differs is False
    assert "no more than the noise" in found.text


def test_without_common_seeds_nothing_is_claimed(tmp_path: Path) -> None:
    for latent, seed in ((2, 0), (2, 1), (4, 2), (4, 3)):
        name = f"{latent}-{seed}"
        make_run(tmp_path / name, {"mse": 0.1 * latent}, settings={"model.latent": latent, "seed": seed})
    found = compare([tmp_path]).t_test
    assert found is not None
    assert found.differs is None
    assert "no seeds in common" in found.text


def test_what_follows_from_the_choice_of_a_model_is_no_column(tmp_path: Path) -> None:
    epochs = {}
    for model in ("stacked_autoencoder", "vae"):
        content = yaml.safe_load((find_config_dir() / "model" / f"{model}.yaml").read_text())
        epochs[model] = {"model": content, "trainer.epochs": content["recipe"]["epochs"]}
    for name, settings in epochs.items():
        make_run(tmp_path / name, settings=settings)
    assert compare([tmp_path]).differing_keys == ("model.name",)
    make_run(tmp_path / "longer", settings={**epochs["vae"], "trainer.epochs": 7})
    assert compare([tmp_path]).differing_keys == ("model.name", "trainer.epochs")


def test_failed_killed_and_empty_runs_are_shown_with_their_state(tmp_path: Path) -> None:
    make_run(tmp_path / "0", settings={"seed": 0})
    diverged = "loss became NaN at step 3"
    make_run(tmp_path / "1", {"mse": None}, settings={"seed": 1}, state="failed", error=diverged)
    make_run(tmp_path / "2", {}, settings={"seed": 2}, state="running", step=7)
    (tmp_path / "3" / ".hydra").mkdir(parents=True)
    refused = tmp_path / "4"
    (refused / ".hydra").mkdir(parents=True)
    (refused / "train.log").write_text("2026-01-01 00:00:00,000 INFO failed: model.latent=0: use at least 1\n")
    half = make_run(tmp_path / "5", settings={"seed": 5})
    (half / "status.json").write_text('{"state": "runn')
    (half / "config.yaml").write_text("model: [")
    states = {run.name: run.state for run in compare([tmp_path]).runs}
    assert states == {
        "0": "finished",
        "1": "failed",
        "2": "killed",
        "3": "unstarted",
        "4": "failed",
        "5": "killed",
    }
    ended = genexp_compare(tmp_path)
    assert ended.code == 0
    assert f"1 failed: {diverged}" in ended.out
    assert "4 failed: model.latent=0: use at least 1" in ended.out
    assert "killed at 7/40" in ended.out


def test_a_run_that_holds_its_folder_is_running(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0", state="running")
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert compare([tmp_path]).runs[0].state == "running"
    assert compare([tmp_path]).runs[0].state == "killed"


def test_failed_seeds_are_not_counted(sweep: Path) -> None:
    make_run(
        sweep / "6", {"mse": 9.0}, settings={"optimizer.lr": 0.003, "seed": 3}, state="failed", error="no room"
    )
    first, _ = compare([sweep]).groups
    assert len(first.runs) == 4
    assert len(first.runs_by_seed) == 3
    assert "3 of 4" in genexp_compare(sweep).out


def test_lists_of_words_stay_whole(tmp_path: Path) -> None:
    for number, layers in enumerate((["relu"], ["relu", "bold"])):
        make_run(tmp_path / str(number), settings={"model.layers": layers})
    out = genexp_compare(tmp_path).out
    assert "[relu] " in out
    assert "[relu, bold]" in out


@pytest.mark.parametrize("width", [70, 100, 200])
def test_numbers_are_whole_at_any_width(width: int, tmp_path: Path) -> None:
    scores = {"mse": 0.123456, "psnr": 23.4567, "ssim": 0.345678, "likelihood": -123.456}
    make_run(tmp_path / "0", scores, settings={"model.latent": 2})
    make_run(tmp_path / "1", scores, settings={"model.latent": 3})
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    print_comparison(compare([tmp_path]), console)
    assert isinstance(console.file, io.StringIO)
    out = console.file.getvalue()
    assert "…" not in out
    assert out.count("0.1235") >= 2
    assert ("-123.5" in out) == (width > 70)
    assert ("also measured: " in out) == (width == 70)


def test_csv_and_json_hold_every_run(sweep: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(genexp_compare("--csv", sweep).out)))
    assert [row["run"] for row in rows] == ["3", "4", "5", "0", "2", "1"]
    assert (rows[0]["optimizer.lr"], float(rows[0]["psnr"]), rows[0]["state"]) == ("0.003", 50.0, "finished")
    content = json.loads(genexp_compare("--json", sweep).out)
    assert content["objective"] == {"metric": "mse", "direction": "min"}
    assert [run["metrics"]["mse"] for run in content["runs"]] == sorted(RATES[0.003]) + sorted(RATES[0.001])
    assert content["groups"][0]["n"] == 3
    assert content["verdict"]["differs"] is True


def test_models_that_share_a_metric_are_sorted_by_it(tmp_path: Path) -> None:
    elbo = {"trainer.objective": "negative_elbo", "model.name": "vae"}
    make_run(tmp_path / "a", {"mse": 0.2}, settings={})
    make_run(tmp_path / "b", {"negative_elbo": 90.0, "mse": 0.1}, settings=elbo)
    comparison = compare([tmp_path])
    assert comparison.objective is not None
    assert comparison.objective.metric == "mse"
    assert [run.name for run in comparison.runs] == ["b", "a"]


def test_bad_input_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "runs" / "a", {"mse": 0.2})
    clusters = {"trainer.objective": "inertia", "model.name": "kmeans"}
    make_run(tmp_path / "runs" / "b", {"inertia": 3.0}, settings=clusters)
    for words, said in (
        ([tmp_path / "empty"], "holds no run"),
        ([tmp_path / "absent"], "is no folder"),
        ([tmp_path / "runs"], "(kmeans: inertia) and a (stacked_autoencoder: mse) have no metric in common"),
        (["--csv", "--json", tmp_path], "not allowed with"),
        ([], "the following arguments are required: FOLDER"),
    ):
        ended = genexp_compare(*words)
        assert ended.code == 1
        assert ended.out == ""
        (line,) = ended.err.splitlines()
        assert line.startswith("genexp-compare: ")
        assert said in line


def test_it_starts_without_torch(sweep: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, str(sweep)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 runs" in done.stdout
