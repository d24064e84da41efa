"""The benchmark measures what it says: the same work, rivals in turn, ratios of the same round."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark import command, memory, scaling_plot
from benchmark.isolated_process import run_in_new_process
from benchmark.logging_overhead import LoggingTask, run
from benchmark.paired_rounds import PairedComparison, run_in_thread, run_paired_rounds
from benchmark.reference_loops import ReferencePhase, remove_optimizations
from benchmark.step_timer import time_run
from benchmark.trainer import TASKS, check_losses, compose_task_config
from torch import nn

from genexp.device import flush_denormals, move_to_device
from genexp.networks.dropout import Dropout
from tests.support.command import called


def figures(*values: float) -> Callable[[], float]:
    """Return a contestant that achieves `values`, one a call."""
    return iter(values).__next__


def test_rivals_are_compared_within_a_round_and_the_first_round_does_not_count() -> None:
    (row,) = run_paired_rounds("work", figures(9, 1, 4, 6), {"rival": figures(1, 1, 2, 2)}, rounds=3)
    assert (row.ours, row.theirs) == (4, 2)
    assert (row.low, row.ratio, row.high) == (1, 2, 3)


@pytest.mark.skipif(not memory.can_measure(), reason="the system does not tell how much memory was held")
def test_memory_is_what_the_work_took_at_most() -> None:
    assert (
        195 < run_in_new_process(hold_and_drop, 50) < 220
    )  # 50 million numbers in float32; the system counts roughly


def hold_and_drop(millions: int) -> float:
    torch.ones(2 * millions * 1_000_000)  # held and dropped before: it does not count
    return memory.measure_peak_megabytes(lambda: torch.ones(millions * 1_000_000))


@pytest.mark.parametrize("name", ["stacked autoencoder", "VAE", "convolutional autoencoder", "GAN"])
def test_what_is_written_by_hand_is_the_same_work(name: str) -> None:
    check_losses(compose_task_config(TASKS[name]), TASKS[name])


def test_rivals_have_what_one_would_write_and_compute_the_same() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(Dropout(0.5), nn.Conv2d(3, 1, 3))).eval()
    move_to_device(network, torch.device("cpu"))
    images = torch.randn(2, 2, 6, 6)
    before = network(images)
    remove_optimizations(network)
    torch.testing.assert_close(network(images), before)
    assert [type(module) for module in network.modules() if isinstance(module, nn.Dropout)] == [nn.Dropout]
    assert all(weight.is_contiguous() for weight in network.parameters())


def test_how_a_contestant_computes_with_tiny_numbers_ends_with_it() -> None:
    torch.set_flush_denormal(False)
    tiny = torch.full((3,), 1e-39)

    def flushed() -> bool:
        flush_denormals()
        return bool((tiny * 0.5 == 0).all())

    assert run_in_thread(flushed)
    assert run_in_thread(lambda: bool((tiny * 0.5 > 0).all()))


def test_other_work_is_refused() -> None:
    work = TASKS["stacked autoencoder"]

    def others(technique: object, lr: float) -> list[ReferencePhase]:
        (player,) = work.build_phases(technique, lr)
        return [replace(player, loss=lambda images: 1.001 * player.loss(images))]

    with pytest.raises(AssertionError, match="not the same work"):
        check_losses(compose_task_config(work), replace(work, build_phases=others))


def test_a_watch_sees_every_pause_between_steps() -> None:
    watch = time_run({**compose_task_config(TASKS["stacked autoencoder"]), **_steps(7)})
    assert len(watch.pauses) == 6
    assert 0 < sum(seconds for seconds, _ in watch.pauses) < watch.seconds


def _steps(count: int) -> dict[str, object]:
    config = compose_task_config(TASKS["stacked autoencoder"])
    return {"trainer": {**config["trainer"], "max_steps": count}}


def test_the_logging_suite_says_what_records_cost() -> None:
    rows = run(1, (LoggingTask("stacked_autoencoder", 30, 200),))
    speed, checkpoints, looks = (row.ratio for row in rows)
    assert 0 < speed < 1
    assert 0 < checkpoints < 1
    assert looks > 0


def test_figures_go_to_the_console_and_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = PairedComparison("60 images", "6", 3.0, 2.0, 1.5, 1.5, 1.5, "MB")
    monkeypatch.setattr(command, "_run_suite", lambda suite, rounds: [row])
    ended = called(
        "benchmark",
        command.main,
        "scaling",
        f"--json={tmp_path / 'a.json'}",
        f"--figure={tmp_path / 'a.png'}",
    )
    assert ended.code == 0, ended.err
    assert "60 images" in ended.out
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["results"] == [row.as_dict()]
    assert written["environment"]["torch"] == torch.__version__
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_missing_rival_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(command.SUITES, "kmeans", ("kmeans", ("no_such_rival",)))
    ended = called("benchmark", command.main, "kmeans")
    assert ended.code == 1
    assert ended.err == "benchmark: kmeans needs no_such_rival; pip install 'genexp[benchmark]'\n"


def test_the_figure_has_a_column_an_axis(tmp_path: Path) -> None:
    rows = [
        PairedComparison(f"{place:,} {axis}", "1", 1.0, 1.0, 1.0, 1.0, 1.0, unit)
        for axis in ("images", "steps")
        for unit in scaling_plot.UNITS
        for place in (10, 1000)
    ]
    scaling_plot.plot_scaling(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("start", "--rounds", "0"),
        ("start", "--rounds", "many"),
        ("start", "--json", "nowhere/figures.json"),
        ("start", "--figure", "growth.png"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it_begins(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_run_suite", lambda suite, rounds: pytest.fail("it began"))
    ended = called("benchmark", command.main, *words)
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("benchmark: error: ")
