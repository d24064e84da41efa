"""Exactness and savings of the pruned assignment of points to centers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genexp.kmeans import pruned_assignment
from genexp.kmeans.cluster_sums import ClusterSumsUpdater
from genexp.kmeans.distances import CenterScorer
from genexp.kmeans.init import random_points
from genexp.kmeans.lloyd import assign, lloyd_step
from genexp.kmeans.projection_bounds import ProjectionBounds
from tests.support.kmeans import load_points, make_points


@pytest.mark.parametrize(("features", "starts", "clusters"), [(2, 1, 9), (2, 3, 9), (40, 1, 9), (40, 2, 9)])
def test_hamerly_bounds_save_comparisons_without_changing_the_result(
    features: int, starts: int, clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(4000, features)
    torch.manual_seed(0)
    bounded_centers = plain_centers = random_points([points], 4000, num_starts=starts, num_clusters=clusters)
    bounded, plain = assign([points], bounded_centers, 4000), assign([points], plain_centers, 4000)
    comparisons = record_call_costs(monkeypatch, CenterScorer, "__call__", lambda _, some, out: len(some))
    for _ in range(40):
        bounded_centers, bounded = lloyd_step([points], bounded_centers, bounded)
        num_comparisons = sum(comparisons)
        plain_centers, plain = lloyd_step(
            [points], plain_centers, replace(plain, changed_fraction=1.0, bounds=None)
        )
        comparisons[:] = [num_comparisons]
        assert torch.equal(bounded_centers, plain_centers)
        assert torch.equal(bounded.labels, plain.labels)
    assert num_comparisons < 0.6 * 40 * 4000


@pytest.mark.parametrize(("starts", "clusters"), [(1, 10), (1, 100), (6, 10)])
def test_projection_bounds_save_comparisons(starts: int, clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = load_points("mnist_5k")
    torch.manual_seed(0)
    centers = random_points([points], len(points), num_starts=starts, num_clusters=clusters)
    comparisons = record_call_costs(
        monkeypatch,
        pruned_assignment,
        "pair_products",
        lambda points, _, pairs: len(pairs.point_indices) * len(points[0]),
    )
    assert_pruning_is_exact(points, centers, 20)
    assert 0 < sum(comparisons) < 0.2 * 20 * points.numel() * starts * clusters


def test_hamerly_bounds_skip_projection_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    points = load_points("mnist_5k")
    torch.manual_seed(0)
    centers = random_points([points], len(points), num_starts=1, num_clusters=10)
    cluster_sums = assign([points], centers, len(points))
    projected_rows = record_call_costs(
        monkeypatch, pruned_assignment.PrunedAssignment, "_find_candidates", lambda _, some, *others: len(some)
    )
    for _ in range(30):
        centers, cluster_sums = lloyd_step([points], centers, cluster_sums)
    assert len(points) < sum(projected_rows) < 0.6 * 30 * len(points)


def test_points_without_a_low_rank_subspace_are_compared_with_all_centers(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(3000, 400, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    centers = random_points([points], 3000, num_starts=1, num_clusters=50)
    compared_rows = record_call_costs(
        monkeypatch,
        pruned_assignment.PrunedAssignment,
        "_find_candidates_exhaustively",
        lambda _, block, place: len(block),
    )
    assert_pruning_is_exact(points, centers, 6)
    assert sum(compared_rows) > 0.9 * 2 * 6 * 3000


@pytest.mark.parametrize("size", [1, 1e13])  # 1e13: its square is far below overflow, its cube is not
def test_pruning_is_exact_for_points_inside_and_outside_a_subspace(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 5, generator=generator) @ torch.randn(5, 400, generator=generator)
    points[::100] += torch.randn(30, 400, generator=generator)
    points *= size
    torch.manual_seed(0)
    assert_pruning_is_exact(points, random_points([points], 3000, num_starts=2, num_clusters=40), 12)


def test_pruning_is_exact_with_empty_clusters() -> None:
    points = load_points("mnist_5k")
    centers = torch.rand(2, 30, 784, generator=torch.Generator().manual_seed(0))  # far from almost all points
    assert (assign([points], centers, len(points)).counts == 0).any()
    assert_pruning_is_exact(points, centers, 12)


def assert_pruning_is_exact(points: Tensor, centers: Tensor, iterations: int) -> None:
    """Iterate with and without bounds: the results are bit-identical, and each label is the nearest center."""
    blocks, count = points.split(700), len(points)
    pruned, exhaustive = assign(blocks, centers, count), assign(blocks, centers, count)
    pruned_centers = exhaustive_centers = centers
    for _ in range(iterations):
        pruned_centers, pruned = lloyd_step(blocks, pruned_centers, pruned)
        exhaustive_centers, exhaustive = lloyd_step(blocks, exhaustive_centers, replace(exhaustive, bounds=None))
        assert isinstance(pruned.bounds, ProjectionBounds)
        assert torch.equal(pruned_centers, exhaustive_centers)
        assert torch.equal(pruned.labels, exhaustive.labels)
        for start, labels in zip(pruned_centers, pruned.labels, strict=True):
            distances = torch.cdist(points.double(), start.double()).square()
            excess = distances.gather(1, labels.long().unsqueeze(1)).squeeze(1) - distances.amin(1)
            scale = points.double().square().sum(1) + start.double().square().sum(1).max()
            assert (excess <= 1e-6 * scale).all()


def record_call_costs(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, cost: Callable[..., int]
) -> list[int]:
    """Return a list to which each call of a function appends its cost, computed from the arguments."""
    function, costs = getattr(owner, name), []

    def wrapper(*args: object) -> object:
        costs.append(cost(*args))
        return function(*args)

    monkeypatch.setattr(owner, name, wrapper)
    return costs


def test_duplicate_centers_do_not_exchange_points() -> None:
    points = load_points("mnist_5k")
    torch.manual_seed(0)  # with other seeds, a point may be equally near to two centers up to rounding
    centers = random_points([points], len(points), num_starts=1, num_clusters=40).repeat(
        1, 2, 1
    )  # each center twice
    cluster_sums = assign([points], centers, len(points))
    labels = cluster_sums.labels.clone()
    assert (labels < 40).all()
    for _ in range(3):
        update = ClusterSumsUpdater(cluster_sums, centers)
        finder = pruned_assignment.PrunedAssignment(centers, cluster_sums, centers, update, [points])
        finder.assign_block(points, slice(0, len(points)))
        cluster_sums = update.build_cluster_sums([], finder.bounds)
        assert torch.equal(cluster_sums.labels, labels)
