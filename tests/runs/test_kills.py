"""Equality of runs that were killed, or lost power, at a boundary of a file operation with uninterrupted runs."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import FIGURES_ON, format_run_dir_override
from tests.support.compose import TECHNIQUES, make_tiny_overrides
from tests.support.kills import count_boundaries, finish_run, kill_and_finish, read_run_content, record_states

INTERVALS = ("trainer.evaluate_every=1", "trainer.preview_every=1", "trainer.checkpoint_every=1")
FAST_MODEL = "stacked_autoencoder"
NUM_RANDOM_BOUNDARIES = 12


def make_arguments(name: str, run_dir: Path) -> list[str]:
    """Return a run with three evaluations, previews and checkpoints, of which the last checkpoint remains.

    k-means converges, and so ends early.
    """
    epochs = 30 if name == "kmeans" else 2
    settings = (f"trainer.epochs={epochs}", "trainer.keep_checkpoints=2", *INTERVALS)
    return [*make_tiny_overrides(name), FIGURES_ON, *settings, format_run_dir_override(run_dir)]


def list_differences(content: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the files in which two runs differ."""
    paths = sorted(content.keys() | expected.keys())
    return [path for path in paths if repr(content.get(path)) != repr(expected.get(path))]


def test_run_killed_at_random_boundaries_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    count = count_boundaries(*make_arguments(FAST_MODEL, whole), counter=tmp_path / "counter")
    expected = read_run_content(whole)
    for index, boundary in enumerate(random.Random(0).sample(range(1, count + 1), NUM_RANDOM_BOUNDARIES)):
        arguments = make_arguments(FAST_MODEL, killed)
        content = kill_and_finish(*arguments, run_dir=killed, boundary=boundary, has_power_loss=index % 3 == 0)
        assert not list_differences(content, expected), f"boundary {boundary}"
        shutil.rmtree(killed)


def test_run_killed_at_its_end_finishes_without_optimizer_state(tmp_path: Path) -> None:
    whole, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    settings = ("trainer.final_checkpoint=weights", "recorders.figures=false", "trainer.preview_every=0")
    count = count_boundaries(*make_arguments(FAST_MODEL, whole), *settings, counter=tmp_path / "counter")
    expected = read_run_content(whole)
    (newest,) = (path for path in expected if path.startswith("checkpoints/"))
    assert expected[newest]["optimizers"] is None
    for boundary in random.Random(0).sample(range(count - 16, count), 3):
        arguments = (*make_arguments(FAST_MODEL, killed), *settings)
        content = kill_and_finish(*arguments, run_dir=killed, boundary=boundary, has_power_loss=boundary % 2 == 0)
        assert not list_differences(content, expected), f"boundary {boundary}"
        shutil.rmtree(killed)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # about 150 interrupted runs of a technique
@pytest.mark.parametrize("name", TECHNIQUES)
def test_run_interrupted_at_every_boundary_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = make_arguments(name, run_dir)
    count, states = record_states(*arguments, run_dir=run_dir, directory=tmp_path / "states")
    expected = read_run_content(run_dir)
    assert len([path for path in expected if path.startswith("checkpoints/step-")]) == 1
    assert {state.interruption for state in states} == {"kill", "power loss"}
    for state in states:
        state.restore(run_dir)
        differences = list_differences(finish_run(*arguments, run_dir=run_dir), expected)
        assert not differences, f"{state.interruption} at boundary {state.boundary} of {count}"
