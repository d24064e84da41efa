"""Benchmark: equal work, alternating measurements, ratios per round, and the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark import cli, command, gpu, memory, scaling_plot, stored_results
from benchmark.isolated_process import run_in_new_process
from benchmark.libraries import build_tasks
from benchmark.logging_overhead import LoggingTask, run
from benchmark.paired_rounds import PairedComparison, compare, run_in_thread, run_paired_rounds
from benchmark.process_usage import run_process
from benchmark.reference_loops import ReferencePhase, remove_optimizations
from benchmark.step_timer import time_run
from benchmark.stored_results import StoredResults
from benchmark.trainer import TASKS, check_losses, compose_task_config
from torch import nn

from genexp.device import flush_denormals, move_to_device
from genexp.networks.dropout import Dropout
from tests.support.assertions import assert_close
from tests.support.command import run_main


def make_measurement(*values: float) -> Callable[[], float]:
    """Return a measurement that returns one of `values` per call."""
    return iter(values).__next__


def test_ratios_are_computed_per_round_and_the_first_round_is_a_warmup() -> None:
    (row,) = run_paired_rounds(
        "work", make_measurement(9, 1, 4, 6), {"rival": make_measurement(1, 1, 2, 2)}, rounds=3
    )
    assert (row.ours, row.theirs) == (4, 2)
    assert (row.low, row.ratio, row.high) == (1, 2, 3)


@pytest.mark.skipif(not memory.can_measure(), reason="the system has no counter of peak memory")
def test_memory_is_the_peak_of_the_measured_function() -> None:
    assert (
        195 < run_in_new_process(measure_allocation, 50) < 220
    )  # 50 million numbers in float32; the system's counter is not exact


def measure_allocation(millions: int) -> float:
    torch.ones(2 * millions * 1_000_000)  # freed before the measured function: not counted
    return memory.measure_peak_megabytes(lambda: torch.ones(millions * 1_000_000))


def test_own_code_and_libraries_compute_the_same() -> None:
    tasks = build_tasks(images=5, samples=200)
    assert len(tasks) == 4
    for name, (ours, rivals) in tasks.items():
        for rival in rivals.values():
            if not name.startswith("dropout"):
                assert_close(rival(), ours(), rel=1e-4)


@pytest.mark.parametrize("name", ["stacked autoencoder", "VAE", "convolutional autoencoder", "GAN"])
def test_reference_loops_compute_the_same_losses(name: str) -> None:
    check_losses(compose_task_config(TASKS[name]), TASKS[name])


def test_remove_optimizations_keeps_the_results() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(Dropout(0.5), nn.Conv2d(3, 1, 3))).eval()
    move_to_device(network, torch.device("cpu"))
    images = torch.randn(2, 2, 6, 6)
    before = network(images)
    remove_optimizations(network)
    torch.testing.assert_close(network(images), before)
    assert [type(module) for module in network.modules() if isinstance(module, nn.Dropout)] == [nn.Dropout]
    assert all(weight.is_contiguous() for weight in network.parameters())


def test_denormal_mode_ends_with_the_measured_thread() -> None:
    torch.set_flush_denormal(False)
    tiny = torch.full((3,), 1e-39)

    def flushed() -> bool:
        flush_denormals()
        return bool((tiny * 0.5 == 0).all())

    assert run_in_thread(flushed)
    assert run_in_thread(lambda: bool((tiny * 0.5 > 0).all()))


def test_different_losses_are_rejected() -> None:
    task = TASKS["stacked autoencoder"]

    def build_other_phases(technique: object, lr: float) -> list[ReferencePhase]:
        (phase,) = task.build_phases(technique, lr)
        return [replace(phase, loss=lambda images: 1.001 * phase.loss(images))]

    with pytest.raises(AssertionError, match="not the same work"):
        check_losses(compose_task_config(task), replace(task, build_phases=build_other_phases))


def test_step_timer_measures_every_pause_between_steps() -> None:
    timing = time_run({**compose_task_config(TASKS["stacked autoencoder"]), **_make_trainer_config(7)})
    assert len(timing.pauses) == 6
    assert 0 < sum(seconds for seconds, _ in timing.pauses) < timing.seconds


def _make_trainer_config(max_steps: int) -> dict[str, object]:
    config = compose_task_config(TASKS["stacked autoencoder"])
    return {"trainer": {**config["trainer"], "max_steps": max_steps}}


@pytest.mark.slow
def test_logging_suite_measures_the_cost_of_recorders() -> None:
    rows = run(1, (LoggingTask("stacked_autoencoder", 30, 200),))
    speed, checkpoints, evaluation = (row.ratio for row in rows)
    assert 0 < speed < 1
    assert 0 < checkpoints < 1
    assert evaluation > 0


def test_results_are_printed_and_written_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = PairedComparison("60 images", "6", 3.0, 2.0, 1.5, 1.5, 1.5, "MB")
    monkeypatch.setattr(cli, "_run_suite", lambda suite, rounds, parts: {"scaling": [row]})
    result = run_main(
        "benchmark",
        cli.main,
        "scaling",
        f"--json={tmp_path / 'a.json'}",
        f"--figure={tmp_path / 'a.png'}",
    )
    assert result.exit_code == 0, result.stderr
    assert "60 images" in result.stdout
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["results"] == [row.as_dict()]
    assert written["environment"]["torch"] == torch.__version__
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.SUITES, "kmeans", ("kmeans", ("no_such_rival",)))
    result = run_main("benchmark", cli.main, "kmeans")
    assert result.exit_code == 1
    assert (
        result.stderr
        == "benchmark: kmeans: requires the package no_such_rival. Run `pip install 'genexp[benchmark]'`.\n"
    )


def test_scaling_figure_is_written(tmp_path: Path) -> None:
    rows = [
        PairedComparison(f"{position:,} {axis}", "1", 1.0, 1.0, 1.0, 1.0, 1.0, unit)
        for axis in ("images", "steps")
        for unit in scaling_plot.UNITS
        for position in (10, 1000)
    ]
    scaling_plot.plot_scaling(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("start", "--rounds", "0"),
        ("start", "--rounds", "many"),
        ("start", "--json", "nowhere/figures.json"),
        ("start", "--figure", "growth.png"),
        ("start", "--only", "kmeans"),
        ("command", "--only", "nonsense"),
    ],
)
def test_invalid_arguments_are_rejected_before_measuring(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_run_suite", lambda suite, rounds, parts: pytest.fail("a measurement was started"))
    result = run_main("benchmark", cli.main, *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("benchmark: error: ")


def test_processes_are_measured_with_their_children(tmp_path: Path) -> None:
    directory = tmp_path / "work"
    directory.mkdir()
    code = (
        "import time; open('log', 'w').write('started'); sum(range(10**7)); open('big', 'wb').write(bytes(10**6))"
    )
    usage = run_process([sys.executable, "-c", code], directory, directory / "log")
    assert usage.processor > 0.05
    assert usage.peak_mb > 5
    assert usage.disk_mb == pytest.approx(1, rel=0.01)
    assert usage.wall_after_start is not None
    assert 0 < usage.wall_after_start <= usage.wall


def test_whole_commands_and_scripts_do_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dataset in ("MNIST", "FashionMNIST"):
        raw_dir = tmp_path / dataset / "raw"
        raw_dir.mkdir(parents=True)
        generator = np.random.default_rng(0)
        for prefix, count in (("train", 200), ("t10k", 100)):
            labels = np.arange(count) % 10
            images = generator.integers(0, 60, (count, 28, 28)) + 19 * labels[:, None, None]
            command.write_idx(raw_dir / f"{prefix}-images-idx3-ubyte", images)
            command.write_idx(raw_dir / f"{prefix}-labels-idx1-ubyte", labels)
    monkeypatch.setenv("GENEXP_DATA", str(tmp_path))
    monkeypatch.setattr(command, "CLUSTERS", (10,))
    monkeypatch.setattr(command, "ITERATIONS", 2)
    monkeypatch.setattr(command, "EPOCHS", 1)
    rows = command.run(1, ["kmeans", "stacked_autoencoder"])
    assert {row.rival for row in rows["kmeans"]} == {"scikit-learn, Lloyd", "scikit-learn, Elkan"}
    assert len(rows["kmeans"]) == 2 * 6
    assert {row.measure for row in rows["stacked_autoencoder"]} == set(command.MEASURES.values())


def test_a_process_that_fails_is_reported_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no fit today"):
        run_process([sys.executable, "-c", "raise SystemExit('no fit today')"], tmp_path)


def make_row(ours: float, theirs: float, unit: str, measure: str = "") -> PairedComparison:
    return compare("VAE", "loop", [ours], [theirs], unit=unit, measure=measure)


def test_gains_are_above_one_where_genexp_is_faster_or_smaller() -> None:
    assert make_row(2, 3, "s").gains == (1.5, 1.5, 1.5)
    assert make_row(3, 2, "images/s").gains == (1.5, 1.5, 1.5)


def test_check_names_the_gains_that_fell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_results, "RESULTS_DIR", tmp_path)
    stored = [
        make_row(2, 4, "s", "wall time"),
        make_row(2, 4, "s", "processor time"),
        make_row(4, 4, "MB", "memory"),
    ]
    StoredResults.describe("command-vae", stored, 3, "wall").write(tmp_path)
    now = [
        make_row(2, 3.5, "s", "wall time"),
        make_row(2, 3.7, "s", "processor time"),
        make_row(3, 4, "MB", "new"),
    ]
    monkeypatch.setattr(cli, "_run_suite", lambda suite, rounds, parts: {"command-vae": now})
    result = run_main("benchmark", cli.main, "command", "--only", "vae", "--check")
    assert result.exit_code == 1
    assert "VAE, wall time, against loop: 1.75, stored 2.00" in result.stderr
    assert "processor time" not in result.stderr


def test_stored_results_are_the_tables_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Speed\n\n<!-- results: command-vae -->\nold\n<!-- /results -->\nend\n")
    monkeypatch.setattr(stored_results, "RESULTS_DIR", tmp_path / "results")
    monkeypatch.setattr(stored_results, "README", readme)
    main_readme = tmp_path / "MAIN.md"
    main_readme.write_text("<!-- quoted results -->\nold\n<!-- /quoted results -->\nend\n")
    monkeypatch.setattr(stored_results, "MAIN_README", main_readme)
    monkeypatch.setattr(stored_results, "QUOTED_ROWS", {"command-vae": ("VAE", "loop")})
    rows = [make_row(2, 4, "s", "wall time"), make_row(200, 100, "MB", "peak memory")]
    monkeypatch.setattr(cli, "_run_suite", lambda suite, rounds, parts: {"command-vae": rows})
    assert run_main("benchmark", cli.main, "command", "--only", "vae", "--store", "--rounds", "1").exit_code == 0
    text = readme.read_text()
    assert "| work | against | wall time | peak memory |" in text
    assert "| VAE | loop | 2.00 (2.00 … 2.00); 2 s | 0.50 (0.50 … 0.50); 200 MB |" in text
    assert "old" not in text
    assert text.endswith("<!-- /results -->\nend\n")
    assert StoredResults.read(tmp_path / "results" / "command-vae.json").rows == rows
    assert main_readme.read_text().endswith("| VAE | loop | 2.00 |\n\n<!-- /quoted results -->\nend\n")


def test_measured_parts_are_stored_when_a_later_part_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_results, "RESULTS_DIR", tmp_path)
    for name in ("README", "MAIN_README"):
        monkeypatch.setattr(stored_results, name, tmp_path / name)
        getattr(stored_results, name).write_text("")
    monkeypatch.setattr(stored_results, "QUOTED_ROWS", {})

    def measure(suite: str, rounds: int, parts: tuple[str, ...]) -> dict[str, list[PairedComparison]]:
        assert parts == ("vae",), "not the same work"
        return {"command-vae": [make_row(2, 4, "s", "wall time")]}

    monkeypatch.setattr(cli, "_run_suite", measure)
    with pytest.raises(AssertionError, match="not the same work"):
        run_main("benchmark", cli.main, "command", "--only", "vae", "gan", "--store")
    assert [path.name for path in tmp_path.glob("*.json")] == ["command-vae.json"]


def test_tables_in_the_readme_are_current() -> None:
    text = stored_results.README.read_text(encoding="utf-8")
    assert stored_results.update_tables(text) == text, "run python scripts/benchmark SUITE --store"
    main_text = stored_results.MAIN_README.read_text(encoding="utf-8")
    assert "<!-- quoted results -->" in main_text
    assert stored_results.update_quotes(main_text) == main_text, "run python scripts/benchmark SUITE --store"
    for path in stored_results.RESULTS_DIR.glob("*.json"):
        assert f"<!-- results: {path.stem} -->" in text


@pytest.mark.slow
@pytest.mark.parametrize(("technique", "loss"), [("stacked_autoencoder", 0.2), ("vae", 700), ("gan", 2)])
def test_loops_of_the_sources_train(technique: str, loss: float, tmp_path: Path) -> None:
    """On a few images, in the script's own directory."""
    name = "FashionMNIST" if technique == "gan" else "MNIST"
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        generator = np.random.default_rng(0)
        command.write_idx(raw / f"{prefix}-images-idx3-ubyte", generator.integers(256, size=(200, 28, 28)))
        command.write_idx(raw / f"{prefix}-labels-idx1-ubyte", generator.integers(10, size=200))
    script = str(command.RIVALS / "source_loops.py")
    directory = tmp_path / "work"
    directory.mkdir()
    run_process([sys.executable, script, technique, str(tmp_path), "--epochs=1"], directory)
    result = json.loads((directory / "result.json").read_text())
    assert result["steps"] == 200 // (50 if technique == "stacked_autoencoder" else 100)
    assert 0 < result["loss"] < loss


def test_gpu_suite_is_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    result = run_main("benchmark", cli.main, "gpu", "--rehearse", "--out", str(out), "--only", "capture", "kmeans")
    assert result.exit_code == 0, result.stderr
    report = json.loads(out.read_text())
    assert report["is_rehearsal"]
    assert [section["status"] for section in report["sections"].values()] == ["done", "done"]
    assert all(row["is_equal"] for row in report["sections"]["capture"]["rows"])


def test_gpu_suite_reports_a_failed_section_and_runs_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(plan: gpu.Plan) -> Iterator[gpu.Row]:
        yield {"is_equal": True}
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.SECTIONS, "losses", fail)
    out = tmp_path / "gpu.json"
    result = run_main("benchmark", cli.main, "gpu", "--rehearse", "--out", str(out), "--only", "losses", "kmeans")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "losses: failed"
    sections = json.loads(out.read_text())["sections"]
    assert (sections["losses"]["error"], len(sections["losses"]["rows"])) == ("RuntimeError: out of memory", 1)
    assert sections["kmeans"]["status"] == "done"


def test_gpu_suite_reports_different_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SECTIONS, "losses", lambda plan: iter([{"is_equal": False}]))
    arguments = ("gpu", "--rehearse", "--out", str(tmp_path / "gpu.json"), "--only", "losses")
    assert run_main("benchmark", cli.main, *arguments).exit_code == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_suite_without_a_gpu_is_one_error_line(tmp_path: Path) -> None:
    result = run_main("benchmark", cli.main, "gpu", "--out", str(tmp_path / "gpu.json"))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("no CUDA device. Use --rehearse to test the script on the CPU.")


def test_random_numbers_of_the_gpu_suite_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    expected = (torch.rand(3), torch.randperm(4), torch.zeros(2).normal_(), torch.rand_like(torch.ones(2)))
    torch.manual_seed(0)
    with gpu.CpuDraws():
        drawn = (torch.rand(3), torch.randperm(4), torch.zeros(2).normal_(), torch.rand_like(torch.ones(2)))
    for ours, theirs in zip(drawn, expected, strict=True):
        assert torch.equal(ours, theirs)
