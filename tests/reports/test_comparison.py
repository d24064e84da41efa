"""Objective and settings that a comparison of runs selects."""

from __future__ import annotations

from pathlib import Path

from genexp.reports.comparison import compare
from genexp.reports.parameter_effects import build_effect_charts
from genexp.reports.run_report import write_run_report
from tests.support.run_dirs import make_run_dir


def test_comparisons_and_pages_find_an_objective_with_a_version(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run_dir(
            tmp_path / str(seed),
            {"frechet_mnist-v1": 50.0 - seed, "recall_mnist-v1": 0.5},
            overrides={"seed": seed, "trainer.objective": "frechet"},
            objective="frechet_mnist-v1",
        )
    comparison = compare([tmp_path])
    assert comparison.objective is not None
    assert comparison.objective.metric == "frechet_mnist-v1"
    assert [run.seed for run in comparison.runs] == [1, 0]
    page = write_run_report(tmp_path / "0")
    assert "<td>frechet_mnist-v1</td><td>test, objective</td>" in page.read_text()


def test_settings_that_equal_those_of_their_group_are_not_columns(tmp_path: Path) -> None:
    def compare_rates(name: str, *rates: tuple[float, float]) -> tuple[str, ...]:
        for number, (rate, generator_rate) in enumerate(rates):
            overrides = {"optimizer.lr": rate, "optimizer.generator": {"lr": generator_rate}}
            make_run_dir(tmp_path / name / str(number), overrides=overrides)
        return compare([tmp_path / name]).differing_keys

    assert compare_rates("equal", (0.1, 0.1), (0.2, 0.2)) == ("optimizer.lr",)
    assert set(compare_rates("other", (0.1, 0.1), (0.2, 0.3))) == {"optimizer.lr", "optimizer.generator.lr"}
    assert compare_rates("one", (0.1, 0.1), (0.1, 0.3)) == ("optimizer.generator.lr",)


def test_effects_of_scored_runs_have_labels_if_a_failed_run_differs(tmp_path: Path) -> None:
    phase = {"optimizer.generator": {"lr": 0.1}}
    make_run_dir(tmp_path / "a", overrides={"optimizer.lr": 0.1, "trainer.epochs": 3, **phase})
    make_run_dir(tmp_path / "b", overrides={"optimizer.lr": 0.1})
    make_run_dir(tmp_path / "c", overrides={"optimizer.lr": 0.2}, state="failed")
    assert [chart["title"] for chart in build_effect_charts(compare([tmp_path]))] == ["trainer.epochs"]
