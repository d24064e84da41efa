"""Results table: rows, runs, results file and Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reproduce
import torch
from reproduce import Deadline, MetricSpec, StoppedError, TableRow
from results_plot import plot_curves

import genexp
from genexp.errors import ConfigError, DataError
from genexp.run_dir import paths
from genexp.run_dir.checkpoint import load_checkpoint
from genexp.runs.build import build_run
from genexp.technique import list_techniques
from tests.support.command import REAL_DATA, load_status, run_genexp, run_main
from tests.support.compose import compose_config, compose_experiment

ROWS = reproduce.load_rows()
CIRCLES = """
- name: circles
  title: k-means
  dataset: two circles
  command: model=kmeans dataset=circles dataset.n_samples=60 trainer.epochs=3 device.threads=1
  seeds: 2
  picture: figures/loss.png
  gallery: circles
  metrics: [{metric: train/inertia, direction: min, target: 1.0e+6, tolerance: 0.5}]
- name: vae
  title: VAE
  dataset: images
  command: model=vae dataset=image_folder dataset.root=nowhere
  metrics: [{metric: loss, direction: min}]
"""


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the rows and the output directory. Return the directory."""
    (tmp_path / "rows.yaml").write_text(CIRCLES)
    outputs_dir = tmp_path / "outputs"
    (outputs_dir / "gallery").mkdir(parents=True)
    (outputs_dir / "README.md").write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    rows = reproduce.load_rows(tmp_path / "rows.yaml")
    monkeypatch.setattr(reproduce, "load_rows", lambda: rows)
    monkeypatch.setattr(reproduce, "OUTPUTS_DIR", outputs_dir)
    monkeypatch.setattr(reproduce, "_run_program", run_in_this_process)
    return outputs_dir


def run_in_this_process(arguments: Sequence[str], deadline: Deadline) -> None:
    """Replace the start of a process, which takes seconds."""
    assert arguments[:2] == ["-m", "genexp.train"]
    assert run_genexp(*arguments[2:]).exit_code == 0


def read_rows(outputs: Path) -> list[dict[str, Any]]:
    return json.loads((outputs / "results.json").read_text())["rows"]


def test_metric_that_a_run_lacks_is_an_error(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = reproduce.load_rows()["circles"]
    rows = {"circles": replace(row, metrics=(MetricSpec("train/inertai", "min"),))}
    monkeypatch.setattr(reproduce, "load_rows", lambda: rows)
    result = run_main("reproduce.py", reproduce.main, "circles", "--seeds", "1")
    assert result.exit_code == 1
    assert "has no metric 'train/inertai'. Did you mean inertia?" in result.stderr
    assert "Traceback" not in result.stderr


def make_entry(**values: Any) -> Mapping[str, Any]:
    """Return an entry of results.json with the given values."""
    row = TableRow("a", "A", "data", "model=a", (MetricSpec("acc", "max", published=0.9, source="paper"),))
    return {**reproduce.build_empty_entry(row, row.metrics[0]), **values}


def test_table_and_results_file_of_the_repository_agree() -> None:
    results = json.loads((reproduce.OUTPUTS_DIR / "results.json").read_text())["rows"]
    assert results == reproduce.load_results(ROWS, reproduce.OUTPUTS_DIR / "results.json"), (
        "run reproduce.py --table"
    )
    found = reproduce.TABLE_PATTERN.search((reproduce.OUTPUTS_DIR / "README.md").read_text())
    assert found is not None
    assert found.group() == reproduce.build_table(results), "run reproduce.py --table"
    readme = (reproduce.OUTPUTS_DIR.parent / "README.md").read_text()
    assert {match[2] for match in reproduce.TECHNIQUE_PATTERN.finditer(readme)} == set(list_techniques())
    assert readme == reproduce.fill_default_scores(readme, results), "run reproduce.py --table"


def test_scores_of_default_runs_are_filled_in() -> None:
    text = "| [`gan`](genexp/techniques/README.md#gan) | a GAN | – |\n"
    entry = {**make_entry(values=[2.0, 4.0], cpu_minutes=1.234), "name": "gan_5k", "metric": "frechet_mnist-v1"}
    filled = reproduce.fill_default_scores(text, [entry])
    assert filled == "| [`gan`](genexp/techniques/README.md#gan) | a GAN | frechet 3, 1.2 min |\n"
    assert reproduce.fill_default_scores(filled, []).endswith("| not run |\n")


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="needs MNIST and Fashion-MNIST")
@pytest.mark.parametrize("name", ROWS)
def test_metrics_of_a_row_are_metrics_of_its_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENEXP_DATA", str(REAL_DATA))
    row = ROWS[name]
    run = build_run(compose_experiment(*row.arguments, "device=cpu"), None)
    test_metrics = {spec.metric for spec in row.metrics if "/" not in spec.metric}
    if row.evaluate is None:
        assert test_metrics <= set(run.learner.technique.list_metrics() or ())


def test_results_of_the_repository_are_complete() -> None:
    for entry in json.loads((reproduce.OUTPUTS_DIR / "results.json").read_text())["rows"]:
        assert len(entry["values"]) == len(entry["seeds"])
        assert not entry["values"] or (entry["cpu_minutes"] and entry["commit"] and entry["machine"])
        assert entry["picture"] is None or (reproduce.OUTPUTS_DIR / entry["picture"]).is_file()


@pytest.mark.parametrize("name", ROWS)
def test_the_command_of_a_row_composes(name: str) -> None:
    assert "seed" in compose_config(*ROWS[name].arguments)


def test_mean_and_standard_error_are_over_seeds() -> None:
    assert reproduce.format_mean([0.5]) == "0.5"
    assert reproduce.format_mean([0.5, 0.7]) == "0.6 ± 0.1"


def test_table_has_the_published_figure_beside_the_obtained_one() -> None:
    table = reproduce.build_table([make_entry(values=[0.8, 0.9], seeds=[0, 1], minutes_to_target=[None, 3.0])])
    assert "| 0.9 (paper) | 0.85 ± 0.05 (2 seeds) | 0.8 |" in table
    assert "3.0 (1 of 2)" in table


def test_a_row_without_a_run_is_below_the_table() -> None:
    table = reproduce.build_table([make_entry(values=[0.8], seeds=[0]), {**make_entry(), "name": "deep"}])
    measured, _, unmeasured = table.partition("<details><summary>Not measured yet: 1</summary>")
    assert measured.count("\n| A |") == 1
    assert unmeasured.count("\n| A | data | acc ↑ | 0.9 (paper) | – | `deep` |") == 1
    assert "<details>" not in reproduce.build_table([make_entry(values=[0.8], seeds=[0])])


def test_rows_of_a_comparison_are_lines_of_a_table_of_their_own() -> None:
    entries = [
        {
            **make_entry(values=values, seeds=[0], cpu_minutes=3.0),
            "name": name,
            "metric": metric,
            "comparison": "B",
        }
        for name, values in (("a", [0.5]), ("b", []))
        for metric in ("acc", "nmi")
    ]
    text = reproduce.build_table([make_entry(values=[0.8], seeds=[0]), *entries])
    assert text.count("\n**B**\n") == 1
    assert "| technique | data | minutes of one core | acc ↑ | nmi ↑ | seeds | command |\n" in text
    assert text.count("| A | data | 3 | 0.5 | 0.5 | 1 | `genexp model=a` |\n") == 1
    assert "Not measured yet: 2" in text
    text = reproduce.build_table([{**entries[0], "values": []}, *entries[1:]])
    assert "| A | data | 3 | – | 0.5 | 1 | `genexp model=a` |\n" in text, "a metric without a result"


def test_times_to_a_score_are_compared_with_those_of_the_reference_preset() -> None:
    ours = make_entry(
        values=[0.95, 0.92], seeds=[0, 1], target=0.9, reference="b", cpu_minutes=1.0, minutes_to_target=[0.5, 0.7]
    )
    other = {**ours, "name": "b", "model": "B", "reference": None, "command": "genexp model=b"}
    line = "| A | data | acc ↑ 0.9 | 0.60 | {} | `genexp model=b` |"
    reached = {**other, "minutes_to_target": [None, 4.0]}
    assert line.format("4.00 (1 of 2)") in reproduce.build_target_table([ours, reached])
    missed = {**other, "minutes_to_target": [None, None], "values": [0.7, 0.9], "cpu_minutes": 3.0}
    assert line.format("not reached in 3.00 (final score 0.8 ± 0.1)") in reproduce.build_target_table(
        [ours, missed]
    )
    assert reproduce.build_target_table([ours, {**other, "minutes_to_target": []}]) == ""
    assert reproduce.build_target_table([ours]) == ""


def test_curves_of_a_comparison_are_plotted(tmp_path: Path) -> None:
    curves = [
        {**make_entry(curve=[[0.5, 9.0], [1.0, 4.0]]), "comparison": comparison, "model": model}
        for comparison, model in (("small", "GAN"), ("small", "DCGAN"), ("large", "GAN"))
    ]
    plot_curves(curves, tmp_path / "all.png")
    plot_curves(curves[:2], tmp_path / "small.png")
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "small.png").read_bytes()
    table = reproduce.build_table([{**entry, "values": [4.0], "cpu_minutes": 1.0} for entry in curves])
    assert table.index("**small**") < table.index("gallery/frechet_curves.png") < table.index("**large**")


def test_rows_are_run_resumed_and_checked(outputs: Path) -> None:
    result = run_main("reproduce.py", reproduce.main, "vae", "circles")
    assert result.exit_code == 0, result.stderr
    assert "vae skipped" in result.stderr
    circles, vae = read_rows(outputs)
    run_dirs = [outputs / "reproduce" / "circles" / f"seed-{seed}" for seed in (0, 1)]
    assert circles["values"] == [load_status(run_dir)["train"]["inertia"] for run_dir in run_dirs]
    assert circles["seeds"] == [0, 1]
    assert circles["cpu_minutes"] > 0
    assert circles["picture"] == "gallery/circles.png"
    assert (outputs / "gallery" / "circles.png").is_file()
    assert vae["values"] == []
    page = (outputs / "README.md").read_text()
    assert page == f"before\n<!-- results -->\n{reproduce.build_table([circles, vae])}<!-- /results -->\nafter\n"

    again = run_main("reproduce.py", reproduce.main, "circles")
    assert again.exit_code == 1
    assert "Add --resume" in again.stderr
    written = {run_dir: (run_dir / "status.json").stat().st_mtime_ns for run_dir in run_dirs}
    assert run_main("reproduce.py", reproduce.main, "circles", "--resume").exit_code == 0
    assert written == {run_dir: (run_dir / "status.json").stat().st_mtime_ns for run_dir in run_dirs}

    assert run_main("reproduce.py", reproduce.main, "--check", "circles").exit_code == 0
    (outputs / "results.json").write_text(json.dumps({"rows": [{**circles, "values": [1.0, 2.0]}, vae]}))
    check = run_main("reproduce.py", reproduce.main, "--check", "circles")
    assert check.exit_code == 1
    assert "outside 0.5 to 2.5" in check.stdout


def test_the_picture_is_that_of_the_first_finished_run(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"seed-0": "stopped", "seed-1": "finished", "seed-2": "finished"}
    for name in states:
        (tmp_path / name).mkdir()
        (tmp_path / name / "clusters.gif").write_text(name)
    monkeypatch.setattr(reproduce, "_read_state", lambda run_dir: states[run_dir.name])
    row = replace(reproduce.load_rows()["circles"], picture="clusters.gif")
    assert reproduce.copy_picture(row, tmp_path) == "gallery/circles.gif"
    assert (outputs / "gallery" / "circles.gif").read_text() == "seed-1"
    assert reproduce.copy_picture(replace(row, picture=None), tmp_path) is None


def test_the_weights_of_the_first_seed_are_in_the_gallery(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main("reproduce.py", reproduce.main, "circles", "--seeds", "1").exit_code == 0
    entry = outputs / "gallery" / "circles"
    weights = load_checkpoint(entry / "checkpoints" / "best.pt")["technique"]
    assert weights["centers"].dtype == torch.float16
    monkeypatch.setattr(paths, "GALLERY_DIR", outputs / "gallery")
    original = genexp.load_run(outputs / "reproduce" / "circles" / "seed-0")
    copy = genexp.load_run("gallery:circles")
    assert copy.scores == original.scores
    pairs = zip(copy.technique.parameters(), original.technique.parameters(), strict=True)
    assert all(torch.allclose(half, full, atol=1e-2) for half, full in pairs)


def test_trained_techniques_of_the_gallery_are_small_and_usable() -> None:
    names = sorted(path.parent.name for path in paths.GALLERY_DIR.glob("*/config.yaml"))
    assert names == sorted(row.gallery for row in ROWS.values() if row.gallery)
    sizes = [(paths.GALLERY_DIR / name / "checkpoints" / "best.pt").stat().st_size for name in names]
    assert max(sizes) <= 2e6
    assert sum(sizes) <= 12e6
    readme = (reproduce.OUTPUTS_DIR / "README.md").read_text()
    for name in names:
        run = genexp.load_run(f"gallery:{name}")
        assert run.dataset.name == "mnist_5k"  # part of the package: no download
        assert all(weight.isfinite().all() for weight in run.technique.state_dict().values())
        assert f"`gallery:{name}`" in readme


def test_no_run_starts_after_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        reproduce.run_row(ROWS["kmeans"], [0], tmp_path, Deadline(0.0))


def test_a_failed_run_raises_its_error_line(tmp_path: Path) -> None:
    row = TableRow("a", "A", "data", "model=kmeans dataset=circles model.clusters=0", ())
    with pytest.raises(DataError, match="clusters=0"):
        reproduce.run_row(row, [0], tmp_path, Deadline(None))


def test_unknown_rows_are_rejected() -> None:
    with pytest.raises(ConfigError, match="Did you mean kmeans"):
        reproduce.run(["kmean"])


def test_results_of_another_command_are_left_out(tmp_path: Path) -> None:
    row = TableRow("a", "A", "data", "model=a", (MetricSpec("acc", "max"),))
    path = tmp_path / "results.json"
    old = {**reproduce.build_empty_entry(row, row.metrics[0]), "values": [1.0], "seeds": [0]}
    path.write_text(json.dumps({"rows": [old]}))
    changed = TableRow("a", "A", "data", "model=a trainer.epochs=2", row.metrics)
    assert reproduce.load_results({"a": row}, path) == [old]
    assert reproduce.load_results({"a": changed}, path)[0]["values"] == []
