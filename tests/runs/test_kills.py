"""Equality of runs that were killed, or lost power, at a boundary of a file operation with uninterrupted runs."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import format_run_dir_override
from tests.support.compose import TECHNIQUES, make_tiny_overrides
from tests.support.kills import count_boundaries, kill_and_finish, read_run_content

INTERVALS = ("trainer.evaluate_every=1", "trainer.preview_every=1", "trainer.checkpoint_every=1")
FAST_MODEL = "stacked_autoencoder"
NUM_RANDOM_BOUNDARIES = 12


def make_arguments(name: str, run_dir: Path) -> list[str]:
    """Return a run with three evaluations, previews and checkpoints, of which the first checkpoint is removed.

    k-means converges, and so ends early.
    """
    epochs = 30 if name == "kmeans" else 2
    settings = (f"trainer.epochs={epochs}", "trainer.keep_checkpoints=2", *INTERVALS)
    return [*make_tiny_overrides(name), *settings, format_run_dir_override(run_dir)]


def run_uninterrupted(name: str, directory: Path) -> tuple[dict[str, Any], int]:
    """Return the content of an uninterrupted run, and the number of its boundaries."""
    run_dir = directory / "uninterrupted"
    count = count_boundaries(*make_arguments(name, run_dir), counter=directory / "counter")
    content = read_run_content(run_dir)
    assert len([path for path in content if path.startswith("checkpoints/step-")]) == 2
    return content, count


def assert_equal_after_kill(
    name: str, run_dir: Path, boundary: int, expected: dict[str, Any], **options: Any
) -> None:
    """Fail if a run that was killed at a boundary and resumed differs from an uninterrupted one."""
    content = kill_and_finish(*make_arguments(name, run_dir), run_dir=run_dir, boundary=boundary, **options)
    paths = sorted(content.keys() | expected.keys())
    different = [path for path in paths if repr(content.get(path)) != repr(expected.get(path))]
    assert not different, f"kill at boundary {boundary}: {different} differ"
    shutil.rmtree(run_dir)


def test_run_killed_at_random_boundaries_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    expected, count = run_uninterrupted(FAST_MODEL, tmp_path)
    for index, boundary in enumerate(random.Random(0).sample(range(1, count + 1), NUM_RANDOM_BOUNDARIES)):
        has_power_loss = index % 3 == 0
        assert_equal_after_kill(FAST_MODEL, tmp_path / "killed", boundary, expected, has_power_loss=has_power_loss)


@pytest.mark.slow
@pytest.mark.parametrize("has_power_loss", [False, True], ids=["kill", "power loss"])
@pytest.mark.parametrize("name", TECHNIQUES)
def test_run_killed_at_every_boundary_equals_an_uninterrupted_one(
    name: str, has_power_loss: bool, tmp_path: Path
) -> None:
    expected, count = run_uninterrupted(name, tmp_path)
    for boundary in range(1, count + 1):
        assert_equal_after_kill(name, tmp_path / "killed", boundary, expected, has_power_loss=has_power_loss)
