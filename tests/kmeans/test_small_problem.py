"""Equality of small problems, solved as one block, with the general algorithm."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genexp.kmeans.init import random_points
from genexp.kmeans.lloyd import assign, fit, lloyd_step
from genexp.kmeans.small_problem import is_small_problem
from tests.support.kmeans import make_points


@pytest.mark.parametrize("starts", [1, 3])
def test_small_problem_step_equals_the_general_step(starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, blocks = make_points(400, 5), make_points(400, 5).split(150)
    torch.manual_seed(0)
    centers = random_points([points], 400, num_starts=starts, num_clusters=6)
    centers[-1, :2] = 1e3  # these clusters become empty
    assert is_small_problem(centers, 400)
    small_centers, small_sums = lloyd_step(blocks, centers, assign(blocks, centers, 400))
    monkeypatch.setattr("genexp.kmeans.lloyd.is_small_problem", lambda *_: False)
    general_centers, general_sums = lloyd_step(blocks, centers, assign(blocks, centers, 400))
    torch.testing.assert_close(small_centers, general_centers)
    torch.testing.assert_close(small_sums.sums, general_sums.sums)
    assert torch.equal(small_sums.counts, general_sums.counts)
    assert torch.equal(small_sums.labels, general_sums.labels)
    assert (small_sums.labels.dtype, small_sums.counts.dtype) == (
        general_sums.labels.dtype,
        general_sums.counts.dtype,
    )
    assert general_sums.counts.sum(1).tolist() == [400] * starts


@pytest.mark.parametrize("max_iter", [0, 1, 4, 100])
@pytest.mark.parametrize("num_empty_clusters", [0, 2])
def test_small_problem_fit_equals_the_general_fit(
    max_iter: int, num_empty_clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(400, 5)
    torch.manual_seed(0)
    centers = random_points([points], 400, num_starts=3, num_clusters=6)
    centers[-1, :num_empty_clusters] = 1e3  # these clusters become empty
    small_centers, small_labels = fit(points.split(150), 400, centers, max_iter)
    monkeypatch.setattr("genexp.kmeans.lloyd.is_small_problem", lambda *_: False)
    general_centers, general_labels = fit(points.split(150), 400, centers, max_iter)
    torch.testing.assert_close(small_centers, general_centers)
    assert torch.equal(small_labels, general_labels)


def test_small_problem_gathers_the_points_once() -> None:
    points = make_points(90, 5)
    centers = random_points([points], 90, num_starts=2, num_clusters=4)
    cluster_sums = assign([points], centers, 90)
    reused_centers, reused = lloyd_step((), centers, cluster_sums)
    recomputed_centers, recomputed = lloyd_step([points], centers, replace(cluster_sums, bounds=None))
    assert torch.equal(reused_centers, recomputed_centers)
    assert torch.equal(reused.sums, recomputed.sums)
    assert torch.equal(reused.labels, recomputed.labels)
