"""Lloyd's algorithm: equality with scikit-learn, ties, empty clusters and blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans

from genexp.kmeans.blocks import moments
from genexp.kmeans.distances import nearest_center
from genexp.kmeans.init import kmeans_plusplus, random_points
from genexp.kmeans.lloyd import assign, fit, lloyd_step
from tests.support.kmeans import BLOCK_ROWS, compute_inertia, load_points, make_points


@pytest.mark.parametrize(("name", "clusters"), [("circles", 2), ("blobs", 4), ("digits", 10), ("mnist_5k", 10)])
def test_fit_matches_scikit_learn(name: str, clusters: int) -> None:
    points = load_points(name)
    generator = torch.Generator().manual_seed(0)
    initial = points[torch.randperm(len(points), generator=generator)[:clusters]]
    reference = SklearnKMeans(clusters, init=initial.numpy(), n_init=1, max_iter=300, tol=0).fit(points.numpy())
    ours, labels = fit(points.split(BLOCK_ROWS), len(points), initial.unsqueeze(0), max_iter=300)
    assert compute_inertia(points, ours) == pytest.approx(reference.inertia_, rel=1e-3)
    assert torch.equal(labels.long(), nearest_center(points, ours))


def test_fit_is_accurate_far_from_the_origin(tmp_path: Path) -> None:
    points = make_points(600, 3)
    far = points + 3e4
    generator = torch.Generator().manual_seed(0)
    initial = torch.randperm(600, generator=generator)[:7]
    centers, _ = fit(points.split(BLOCK_ROWS), 600, points[initial][None], 100)
    shifted = (far - far.mean(0)).split(BLOCK_ROWS)  # the technique passes centered points
    far_centers, _ = fit(shifted, 600, (far[initial] - far.mean(0))[None], 100)
    assert compute_inertia(far, far_centers + far.mean(0)) == pytest.approx(
        compute_inertia(points, centers), rel=1e-2
    )
    assert moments(far.split(70)).variance == pytest.approx(
        float(far.double().var(0, correction=0).mean()), rel=1e-4
    )


@pytest.mark.parametrize("count", [8, 9000])
@pytest.mark.parametrize("clusters", [6, 40])  # few clusters, and many
def test_ties_are_assigned_to_the_first_center(count: int, clusters: int) -> None:
    points = torch.zeros(count, 2)
    centers = torch.full((2, clusters, 2), 3.0)
    centers[0, 2:5], centers[1, 4:6] = 1, 1
    cluster_sums = assign([points], centers, count)
    assert cluster_sums.labels.unique(dim=1).tolist() == [[2], [4]]
    assert cluster_sums.counts[0, 2] == cluster_sums.counts[1, 4] == count
    assert nearest_center(points, centers[1]).unique().tolist() == [4]


def test_result_does_not_depend_on_block_size() -> None:
    points = make_points(1000, 5)
    centers = points[:12].unflatten(0, (2, 6))
    whole, parts = assign([points], centers, 1000), assign(points.split(37), centers, 1000)
    assert torch.equal(whole.counts, parts.counts)
    torch.testing.assert_close(whole.sums, parts.sums, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        whole.inertia_without_norms(centers), parts.inertia_without_norms(centers), rtol=1e-5, atol=1e-2
    )


def test_starts_are_independent() -> None:
    points = make_points(400, 3)
    blocks = points.split(90)
    starts = random_points(blocks, 400, num_starts=4, num_clusters=5)
    together, cluster_sums = lloyd_step(blocks, starts, assign(blocks, starts, 400))
    for start in range(4):
        own_start = starts[start : start + 1]
        alone, own = lloyd_step(blocks, own_start, assign(blocks, own_start, 400))
        torch.testing.assert_close(together[start], alone[0])
        assert torch.equal(cluster_sums.counts[start], own.counts[0])


def test_inertia_never_increases() -> None:
    points = load_points("digits")
    blocks = points.split(BLOCK_ROWS)
    centers = random_points(blocks, len(points), num_starts=3, num_clusters=10)
    cluster_sums = assign(blocks, centers, len(points))
    for _ in range(20):
        before = cluster_sums.inertia_without_norms(centers)
        centers, cluster_sums = lloyd_step(blocks, centers, cluster_sums)
        assert (cluster_sums.inertia_without_norms(centers) <= before + 1e-6 * before.abs()).all()


def test_duplicates_leave_no_nan() -> None:
    points = torch.ones(50, 2)
    centers = kmeans_plusplus(points.split(20), 50, num_starts=2, num_clusters=4)
    assert torch.equal(centers, torch.ones(2, 4, 2))
    assert torch.equal(fit(points.split(20), 50, centers, 10)[0], torch.ones(4, 2))
