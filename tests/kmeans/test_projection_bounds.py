"""Exactness, savings and memory of the bounds from projections."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from genexp.kmeans.distances import CenterScorer
from genexp.kmeans.init import random_points
from genexp.kmeans.lloyd import assign, choose_assignment, lloyd_step
from genexp.kmeans.projection_bounds import ProjectionBounds
from tests.support.kmeans import assert_pruning_is_exact, load_points, record_call_costs


@pytest.mark.parametrize("num_magnitudes", [0, 15])  # range of the norms of points, in powers of ten
def test_projections_give_lower_bounds_on_inner_products(num_magnitudes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 12, generator=generator) @ torch.randn(12, 400, generator=generator)
    points[1500:] += 0.1 * torch.randn(1500, 400, generator=generator)  # the first half lies in the subspace
    points *= 10 ** torch.empty(3000, 1).uniform_(-num_magnitudes, num_magnitudes, generator=generator)
    points[-1] = 0
    bounds = ProjectionBounds([points], points[None, :3], 3000)
    projected = bounds.project(points, points.square().sum(1)).double()
    inner = points.double() @ points[:200].double().T
    lengths = points.double().norm(dim=1).clamp(min=1e-30)
    error = (projected @ projected[:200].T - inner) / (lengths[:, None] * lengths[:200])
    assert error.min() > -1e-6
    assert num_magnitudes or error[:1500].mean() < 1e-4  # and tight inside the subspace


@pytest.mark.parametrize(("starts", "clusters"), [(1, 10), (1, 100), (6, 10)])
def test_bounds_save_comparisons(starts: int, clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = load_points("mnist_5k")
    torch.manual_seed(0)
    centers = random_points([points], len(points), num_starts=starts, num_clusters=clusters)
    bounds = choose_assignment([points], centers, len(points))
    assert isinstance(bounds, ProjectionBounds)
    sums = assign([points], centers, len(points), bounds)
    pairs = record_call_costs(monkeypatch, CenterScorer, "pair_scores", lambda _, some, rows, columns: len(rows))
    scores = record_call_costs(
        monkeypatch, CenterScorer, "__call__", lambda _, some: len(some) * starts * clusters
    )
    for _ in range(20):
        centers, sums = lloyd_step([points], centers, sums, bounds)
    assert 0 < sum(pairs) + sum(scores) < 0.2 * 20 * len(points) * starts * clusters


def test_bounds_skip_most_points_after_some_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    points = load_points("mnist_5k")
    torch.manual_seed(0)
    centers = random_points([points], len(points), num_starts=1, num_clusters=10)
    bounds = ProjectionBounds([points], centers, len(points))
    sums = assign([points], centers, len(points), bounds)
    screened = record_call_costs(monkeypatch, ProjectionBounds, "_screen", lambda _, rows, *others: len(rows))
    for _ in range(30):
        centers, sums = lloyd_step([points], centers, sums, bounds)
    assert len(points) < sum(screened) < 0.6 * 30 * len(points)


@pytest.mark.parametrize(("starts", "clusters"), [(1, 10), (1, 100), (6, 10)])
def test_bounds_change_no_result(starts: int, clusters: int) -> None:
    points = load_points("mnist_5k")
    torch.manual_seed(0)
    centers = random_points([points], len(points), num_starts=starts, num_clusters=clusters)
    assert_pruning_is_exact(points, centers, 12, lambda: ProjectionBounds([points], centers, len(points)))


def test_points_without_a_low_rank_subspace_are_compared_with_all_centers(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(3000, 400, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    centers = random_points([points], 3000, num_starts=1, num_clusters=50)
    assert_pruning_is_exact(points, centers, 6, lambda: ProjectionBounds([points], centers, 3000))
    bounds = ProjectionBounds([points], centers, 3000)
    sums = assign([points], centers, 3000, bounds)
    compared = record_call_costs(monkeypatch, CenterScorer, "__call__", lambda _, some: len(some))
    for _ in range(6):
        centers, sums = lloyd_step([points], centers, sums, bounds)
    assert sum(compared) > 0.9 * 6 * 3000


@pytest.mark.parametrize("size", [1, 1e13])  # 1e13: its square is far below overflow, its cube is not
def test_bounds_are_exact_for_points_inside_and_outside_a_subspace(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 5, generator=generator) @ torch.randn(5, 400, generator=generator)
    points[::100] += torch.randn(30, 400, generator=generator)
    points *= size
    torch.manual_seed(0)
    centers = random_points([points], 3000, num_starts=2, num_clusters=40)
    assert_pruning_is_exact(points, centers, 12, lambda: ProjectionBounds([points], centers, 3000))


def test_bounds_are_exact_with_empty_clusters_and_blank_points() -> None:
    points = load_points("mnist_5k").clone()
    points[::50] = 0
    centers = torch.rand(2, 30, 784, generator=torch.Generator().manual_seed(0))  # far from almost all points
    centers[0, 3:5] = 0
    assert (assign([points], centers, len(points)).counts == 0).any()
    assert_pruning_is_exact(points, centers, 12, lambda: ProjectionBounds([points], centers, len(points)))


def test_blocks_are_not_kept_in_memory() -> None:
    """Kept references to generated blocks would hold the whole data set in memory."""
    block_refs: list[weakref.ref[Tensor]] = []

    class GeneratedBlocks:
        def __iter__(self) -> Iterator[Tensor]:
            for number in range(30):
                block = torch.full((100, 400), float(number))
                block_refs.append(weakref.ref(block))
                yield block
                del block
                assert sum(ref() is not None for ref in block_refs) <= 1

    ProjectionBounds(GeneratedBlocks(), torch.zeros(1, 3, 400), 3000)
    assert len(block_refs) == 30


def test_few_points_with_many_features_are_not_projected() -> None:
    points = torch.randn(9, 2**18, generator=torch.Generator().manual_seed(0))
    assert not isinstance(choose_assignment([points], points[None, :3], 9), ProjectionBounds)
