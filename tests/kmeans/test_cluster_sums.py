"""Sums and counts of clusters over many iterations."""

from __future__ import annotations

import torch

from genexp.kmeans.cluster_sums import ClusterSums
from genexp.kmeans.init import random_points
from genexp.kmeans.lloyd import assign, lloyd_step
from tests.support.kmeans import make_points


def test_rounding_of_cluster_sums_does_not_grow_over_iterations() -> None:
    points = make_points(3000, 6)
    centers = random_points([points], 3000, num_starts=2, num_clusters=20)
    cluster_sums = assign(points.split(100), centers, 3000)
    for _ in range(30):
        centers, cluster_sums = lloyd_step(points.split(100), centers, cluster_sums)
    for start in range(2):
        labels = cluster_sums.labels[start].long()
        sums = torch.zeros(20, 6, dtype=torch.double).index_add_(0, labels, points.double())
        torch.testing.assert_close(cluster_sums.sums[start], sums, rtol=1e-6, atol=1e-6)
        assert torch.equal(cluster_sums.counts[start], labels.bincount(minlength=20))


def test_means_of_an_empty_cluster_keep_its_center() -> None:
    cluster_sums = ClusterSums.create_unassigned(torch.zeros(1, 1, 2), 3)
    assert torch.equal(cluster_sums.means(torch.full((1, 1, 2), 3.0)), torch.full((1, 1, 2), 3.0))
