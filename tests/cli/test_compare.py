"""`genexp-compare`: order, columns, statistics, states and formats of the table of runs."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from scipy.stats import ttest_rel

from genexp.cli.compare import main
from genexp.reports import compare, print_comparison
from genexp.run_dir.files import lock_run_dir
from genexp.run_dir.status import record_failure
from tests.support.command import CommandResult, format_import_check, get_error_line, run_main
from tests.support.compose import compose_values
from tests.support.run_dirs import make_run_dir

CHECK_IMPORTS_SCRIPT = format_import_check(
    "genexp.cli.compare", {"torch", "hydra", "matplotlib", "scipy.stats", "tensorboardX"}
)
MSE_BY_LEARNING_RATE = {
    0.001: (0.30, 0.32, 0.31),
    0.003: (0.20, 0.21, 0.22),
}  # optimizer.lr → mse of seeds 0, 1, 2


def run_compare(*arguments: str | Path) -> CommandResult:
    return run_main("genexp-compare", main, *map(str, arguments))


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    """Return a sweep of two learning rates and three seeds."""
    jobs = [(rate, seed, mse) for rate, scores in MSE_BY_LEARNING_RATE.items() for seed, mse in enumerate(scores)]
    for number, (rate, seed, mse) in enumerate(jobs):
        settings = {"optimizer.lr": rate, "seed": seed}
        make_run_dir(tmp_path / "sweep" / str(number), {"mse": mse, "psnr": 10 / mse}, overrides=settings)
    return tmp_path / "sweep"


def test_runs_are_sorted_by_objective_and_show_differing_parameters(sweep_dir: Path) -> None:
    comparison = compare([sweep_dir])
    assert [run.name for run in comparison.runs] == ["3", "4", "5", "0", "2", "1"]
    assert comparison.differing_keys == ("optimizer.lr",)
    assert comparison.metrics == ("mse", "psnr")
    result = run_compare(sweep_dir)
    assert result.exit_code == 0
    assert result.stderr == ""
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["3", "0.003", "0", "0.2", "50", "0.2", "0:01:30", "finished"] in rows


def test_highest_score_comes_first_if_the_objective_is_maximized(tmp_path: Path) -> None:
    objective = {"trainer.objective": "test/psnr", "trainer.direction": "max"}
    for number, psnr in enumerate((11.0, 13.0, 12.0)):
        settings = {**objective, "model.latent": 2 + number}
        make_run_dir(tmp_path / str(number), {"mse": 0.1, "psnr": psnr}, overrides=settings)
    comparison = compare([tmp_path])
    assert [run.name for run in comparison.runs] == ["1", "2", "0"]
    assert comparison.metrics[0] == "psnr"


def test_seeds_are_averaged_and_compared_by_a_paired_t_test(sweep_dir: Path) -> None:
    comparison = compare([sweep_dir])
    first, second = comparison.groups
    assert (first.label, second.label) == ("optimizer.lr=0.003", "optimizer.lr=0.001")
    mean = first.mean_score("mse")
    assert mean is not None
    assert mean.mean == pytest.approx(0.21)
    assert mean.error == pytest.approx(0.01 / 3**0.5)
    assert mean.n == 3
    found = comparison.t_test
    assert found is not None
    assert found.p == pytest.approx(ttest_rel(MSE_BY_LEARNING_RATE[0.003], MSE_BY_LEARNING_RATE[0.001]).pvalue)
    assert found.differs
    assert "significant (paired t-test on 3 common seeds" in run_compare(sweep_dir).stdout


def test_insignificant_difference_is_reported_as_noise(tmp_path: Path) -> None:
    for latent, scores in {2: (0.1, 0.3, 0.2), 4: (0.3, 0.1, 0.21)}.items():
        for seed, mse in enumerate(scores):
            make_run_dir(
                tmp_path / f"{latent}-{seed}", {"mse": mse}, overrides={"model.latent": latent, "seed": seed}
            )
    found = compare([tmp_path]).t_test
    assert found is not None
    assert found.differs is False
    assert "not significant" in found.text


def test_t_test_needs_common_seeds(tmp_path: Path) -> None:
    for latent, seed in ((2, 0), (2, 1), (4, 2), (4, 3)):
        name = f"{latent}-{seed}"
        make_run_dir(tmp_path / name, {"mse": 0.1 * latent}, overrides={"model.latent": latent, "seed": seed})
    found = compare([tmp_path]).t_test
    assert found is not None
    assert found.differs is None
    assert "no common seeds" in found.text


def test_values_implied_by_the_model_have_no_column(tmp_path: Path) -> None:
    epochs = {}
    for model in ("stacked_autoencoder", "vae"):
        values = compose_values(f"model={model}")
        epochs[model] = {"model": values["model"], "trainer.epochs": values["trainer"]["epochs"]}
    for name, settings in epochs.items():
        make_run_dir(tmp_path / name, overrides=settings)
    assert compare([tmp_path]).differing_keys == ("model.name",)
    make_run_dir(tmp_path / "longer", overrides={**epochs["vae"], "trainer.epochs": 7})
    assert compare([tmp_path]).differing_keys == ("model.name", "trainer.epochs")


def test_failed_killed_and_unstarted_runs_are_listed_with_their_state(tmp_path: Path) -> None:
    make_run_dir(tmp_path / "0", overrides={"seed": 0})
    diverged = "loss became NaN at step 3"
    make_run_dir(tmp_path / "1", {"mse": None}, overrides={"seed": 1}, state="failed", error=diverged)
    make_run_dir(tmp_path / "2", {}, overrides={"seed": 2}, state="running", step=7)
    (tmp_path / "3" / ".hydra").mkdir(parents=True)
    refused = tmp_path / "4"
    (refused / ".hydra").mkdir(parents=True)
    record_failure(refused, {}, "model.latent=0: must be at least 1.")
    half = make_run_dir(tmp_path / "5", overrides={"seed": 5})
    (half / "status.json").unlink()
    (half / "config.yaml").write_text("model: [")
    damaged = make_run_dir(tmp_path / "6", overrides={"seed": 6})
    (damaged / "status.json").write_text('{"state": "runn')
    states = {run.name: run.state for run in compare([tmp_path]).runs}
    assert states == {
        "0": "finished",
        "1": "failed",
        "2": "killed",
        "3": "unstarted",
        "4": "failed",
        "5": "damaged",
        "6": "damaged",
    }
    result = run_compare(tmp_path)
    assert result.exit_code == 0
    assert f"1 failed: {diverged}" in result.stdout
    assert "4 failed: model.latent=0: must be at least 1." in result.stdout
    assert re.search(r"6 damaged: \S+status\.json: damaged", result.stdout)
    assert "killed at 7/40" in result.stdout


def test_run_that_holds_its_lock_is_listed_as_running(tmp_path: Path) -> None:
    folder = make_run_dir(tmp_path / "0", state="running")
    with lock_run_dir(folder):
        assert compare([tmp_path]).runs[0].state == "running"
    assert compare([tmp_path]).runs[0].state == "killed"


def test_failed_seeds_are_not_counted(sweep_dir: Path) -> None:
    make_run_dir(
        sweep_dir / "6",
        {"mse": 9.0},
        overrides={"optimizer.lr": 0.003, "seed": 3},
        state="failed",
        error="no room",
    )
    first, _ = compare([sweep_dir]).groups
    assert len(first.runs) == 4
    assert len(first.runs_by_seed) == 3
    assert "3 of 4" in run_compare(sweep_dir).stdout


def test_list_values_are_not_truncated(tmp_path: Path) -> None:
    for number, layers in enumerate((["relu"], ["relu", "bold"])):
        make_run_dir(tmp_path / str(number), overrides={"model.layers": layers})
    out = run_compare(tmp_path).stdout
    assert "[relu] " in out
    assert "[relu, bold]" in out


@pytest.mark.parametrize("width", [70, 100, 200])
def test_numbers_are_not_truncated_at_any_width(width: int, tmp_path: Path) -> None:
    scores = {"mse": 0.123456, "psnr": 23.4567, "ssim": 0.345678, "likelihood": -123.456}
    make_run_dir(tmp_path / "0", scores, overrides={"model.latent": 2})
    make_run_dir(tmp_path / "1", scores, overrides={"model.latent": 3})
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    print_comparison(compare([tmp_path]), console)
    assert isinstance(console.file, io.StringIO)
    out = console.file.getvalue()
    assert "…" not in out
    assert out.count("0.1235") >= 2
    assert ("-123.5" in out) == (width > 70)
    assert ("other metrics: " in out) == (width == 70)


def test_csv_and_json_contain_every_run(sweep_dir: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run_compare("--csv", sweep_dir).stdout)))
    assert [row["run"] for row in rows] == ["3", "4", "5", "0", "2", "1"]
    assert (rows[0]["optimizer.lr"], float(rows[0]["psnr"]), rows[0]["state"]) == ("0.003", 50.0, "finished")
    content = json.loads(run_compare("--json", sweep_dir).stdout)
    assert content["objective"] == {"metric": "mse", "direction": "min"}
    assert [run["metrics"]["mse"] for run in content["runs"]] == sorted(MSE_BY_LEARNING_RATE[0.003]) + sorted(
        MSE_BY_LEARNING_RATE[0.001]
    )
    assert content["groups"][0]["n"] == 3
    assert content["verdict"]["differs"] is True


def test_models_that_share_a_metric_are_sorted_by_it(tmp_path: Path) -> None:
    elbo = {"trainer.objective": "negative_elbo", "model.name": "vae"}
    make_run_dir(tmp_path / "a", {"mse": 0.2}, overrides={})
    make_run_dir(tmp_path / "b", {"negative_elbo": 90.0, "mse": 0.1}, overrides=elbo)
    comparison = compare([tmp_path])
    assert comparison.objective is not None
    assert comparison.objective.metric == "mse"
    assert [run.name for run in comparison.runs] == ["b", "a"]


def test_invalid_arguments_fail_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_run_dir(tmp_path / "runs" / "a", {"mse": 0.2})
    clusters = {"trainer.objective": "inertia", "model.name": "kmeans"}
    make_run_dir(tmp_path / "runs" / "b", {"inertia": 3.0}, overrides=clusters)
    for arguments, message in (
        ([tmp_path / "empty"], "contains no run"),
        ([tmp_path / "absent"], "not a directory"),
        ([tmp_path / "runs"], "(kmeans: inertia) and a (stacked_autoencoder: mse). Use runs of the same task"),
        (["--csv", "--json", tmp_path], "not allowed with"),
        ([], "the following arguments are required: DIR"),
    ):
        result = run_compare(*arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("genexp-compare: ")
        assert message in line


def test_compare_does_not_import_torch(sweep_dir: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CHECK_IMPORTS_SCRIPT, str(sweep_dir)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "6 runs" in result.stdout


@pytest.mark.parametrize("width", [60, 80])
def test_table_is_no_wider_than_the_screen(width: int, tmp_path: Path) -> None:
    """Columns that do not fit are named below the table, and no number is cut."""
    keys = ("optimizer.lr", "model.latent", "dataset.resident_gb", "trainer.epochs", "dataset.limit")
    for number in range(2):
        overrides = dict.fromkeys(keys, 1234567 + number)
        make_run_dir(tmp_path / str(number), {"mse": 0.123456 + number}, overrides=overrides)
    file = io.StringIO()
    print_comparison(compare([tmp_path]), Console(file=file, width=width, force_terminal=True, color_system=None))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "other settings: " in file.getvalue()
    assert "…" not in file.getvalue()
    assert "0.1235" in file.getvalue()


def test_tensorboard_logs_have_readable_names(tmp_path: Path) -> None:
    for number in range(2):
        run = make_run_dir(tmp_path / "sweep" / str(number), overrides={"optimizer.lr": 0.001 * (1 + number)})
        events_dir = run if number else run / "tensorboard"  # of runs of earlier versions
        events_dir.mkdir(exist_ok=True)
        (events_dir / "events.out.tfevents.1").touch()
    make_run_dir(tmp_path / "sweep" / "2")  # without logs
    for _ in range(2):  # the second call replaces the links of the first
        assert run_compare(tmp_path / "sweep", "--tensorboard", tmp_path / "logs").exit_code == 0
    links = sorted(path for path in (tmp_path / "logs").rglob("*") if path.is_symlink())
    names = [str(link.relative_to(tmp_path / "logs")) for link in links]
    assert names == ["stacked_autoencoder/0 lr=0.001 seed=0", "stacked_autoencoder/1 lr=0.002 seed=0"]
    assert all((link / "events.out.tfevents.1").is_file() for link in links)
    result = run_compare(tmp_path / "sweep", "--tensorboard", tmp_path / "sweep")
    assert "contains other files" in get_error_line(result, "genexp-compare")
