"""Comparison of nested values and of runs: bit for bit, or up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genexp.run_dir.paths import find_animations
from tests.support.command import load_newest_state, read_metrics_log


def assert_leaves(
    left: Any, right: Any, assert_leaf: Callable[[Any, Any, str], None], path: str = "state"
) -> None:
    """Assert that two nested values have the same structure; call `assert_leaf(left, right, path)` on leaves."""
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_leaves(left[key], right[key], assert_leaf, f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_leaves(a, b, assert_leaf, f"{path}[{index}]")
    else:
        assert_leaf(left, right, path)


def assert_same(left: Any, right: Any) -> None:
    """Assert that two nested values are equal, tensors bit for bit."""

    def assert_leaf(left: Any, right: Any, path: str) -> None:
        if isinstance(left, torch.Tensor):
            assert (left.dtype, left.shape) == (right.dtype, right.shape), path
            # As bytes: NaN equals itself, and 0 is not -0.
            left_bytes, right_bytes = (each.contiguous().reshape(-1).view(torch.uint8) for each in (left, right))
            assert torch.equal(left_bytes, right_bytes), path
        else:
            assert left == right, path

    assert_leaves(left, right, assert_leaf)


def assert_close(left: Any, right: Any, rel: float = 1e-6) -> None:
    """Assert that two nested values are equal, each number up to a relative error or 1e-9."""

    def assert_leaf(left: Any, right: Any, path: str) -> None:
        if isinstance(left, torch.Tensor):
            torch.testing.assert_close(left, right, rtol=rel, atol=1e-9, msg=lambda text: f"{path}: {text}")
        else:
            expected = pytest.approx(right, rel=rel, abs=1e-9) if isinstance(right, float) else right
            assert left == expected, path

    assert_leaves(left, right, assert_leaf)


def assert_close_to_scale(left: Any, right: Any, tolerance: float) -> None:
    """Assert that two nested values are equal, tensors up to an error relative to their largest number."""

    def assert_leaf(left: Any, right: Any, path: str) -> None:
        if isinstance(left, torch.Tensor) and left.is_floating_point():
            assert left.shape == right.shape, path
            scale = max(1e-3, float(right.abs().max())) if right.numel() else 1.0
            assert float((left - right).abs().max() if right.numel() else 0.0) <= tolerance * scale, path
        elif isinstance(left, torch.Tensor):
            assert torch.equal(left, right), path
        elif isinstance(left, float):
            assert left == pytest.approx(right, rel=max(tolerance, 1e-12)), path
        else:
            assert left == right, path

    assert_leaves(left, right, assert_leaf)


def assert_same_run(left: Path, right: Path) -> None:
    """Assert that two runs ended with the same weights, optimizer state, metrics, previews and animations."""
    assert_same(load_newest_state(left), load_newest_state(right))
    assert read_metrics_log(left) == read_metrics_log(right)
    pictures = [
        {path.relative_to(run_dir): path for path in [*run_dir.glob("previews/*/*"), *find_animations(run_dir)]}
        for run_dir in (left, right)
    ]
    assert pictures[0].keys() == pictures[1].keys()
    for name, path in pictures[0].items():
        assert path.read_bytes() == pictures[1][name].read_bytes(), name
