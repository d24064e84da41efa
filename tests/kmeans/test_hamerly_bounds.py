"""Exactness and savings of Hamerly's bounds."""

from __future__ import annotations

import pytest
import torch

from genexp.kmeans.distances import CenterScorer
from genexp.kmeans.hamerly_bounds import HamerlyBounds
from genexp.kmeans.init import random_points
from genexp.kmeans.lloyd import assign, lloyd_step
from tests.support.kmeans import assert_pruning_is_exact, make_points, record_call_costs


@pytest.mark.parametrize(("features", "starts"), [(2, 1), (2, 3), (40, 1), (40, 2)])
def test_bounds_save_comparisons_without_changing_the_result(
    features: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(4000, features)
    torch.manual_seed(0)
    centers = random_points([points], 4000, num_starts=starts, num_clusters=9)
    assert_pruning_is_exact(points, centers, 40, lambda: HamerlyBounds(centers, 4000))
    bounds = HamerlyBounds(centers, 4000)
    sums = assign([points], centers, 4000, bounds)
    comparisons = record_call_costs(monkeypatch, CenterScorer, "__call__", lambda _, some: len(some))
    for _ in range(40):
        centers, sums = lloyd_step([points], centers, sums, bounds)
    assert 0 < sum(comparisons) < 0.6 * 40 * 4000


def test_bounds_of_points_with_another_label_are_discarded() -> None:
    points = make_points(1000, 3)
    centers = points[None, :5].clone()
    bounds = HamerlyBounds(centers, 1000)
    sums = assign([points], centers, 1000, bounds)
    labels = sums.labels.clone()
    sums.labels[0, ::7] = 4  # as after loading another state
    bounds.move_centers(centers, sums.labels)
    assert torch.equal(bounds.find_nearest(points, 0, sums.labels), labels)


def test_starts_that_are_left_keep_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    points = make_points(2000, 3)
    torch.manual_seed(0)
    centers = random_points([points], 2000, num_starts=3, num_clusters=5)
    bounds = HamerlyBounds(centers, 2000)
    labels = assign([points], centers, 2000, bounds).labels
    bounds.select_starts(torch.tensor([0, 2]))
    comparisons = record_call_costs(monkeypatch, CenterScorer, "__call__", lambda _, some: len(some))
    bounds.move_centers(centers[[0, 2]], labels[[0, 2]])
    assert torch.equal(bounds.find_nearest(points, 0, labels[[0, 2]]), labels[[0, 2]])
    assert sum(comparisons) < 20


@pytest.mark.parametrize("is_equal", [True, False])
def test_centers_that_are_equal_or_nearly_equal_do_not_exchange_points(is_equal: bool) -> None:
    points = make_points(3000, 20)
    centers = points[None, :6].repeat(1, 2, 1)  # each center twice
    if not is_equal:
        centers[0, 6:] += 1e-7  # less than the rounding of a matrix product
    bounds = HamerlyBounds(centers, 3000)
    labels = assign(points.split(1111), centers, 3000, bounds).labels
    for size in (3000, 700, 64):
        bounds = HamerlyBounds(centers, 3000)
        bounds.move_centers(centers, labels)
        again = torch.cat([
            bounds.find_nearest(part, number * size, labels[:, number * size : number * size + len(part)])
            for number, part in enumerate(points.split(size))
        ], 1)  # fmt: skip
        assert torch.equal(again, labels)


def test_a_single_cluster_has_no_other_center() -> None:
    points = make_points(500, 2)
    centers = points[None, :1].clone()
    assert_pruning_is_exact(points, centers, 3, lambda: HamerlyBounds(centers, 500))
