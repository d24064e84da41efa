"""Relocation of empty clusters."""

from __future__ import annotations

import torch

from genexp.kmeans.empty_clusters import relocate_empty_clusters
from genexp.kmeans.lloyd import assign


def test_empty_clusters_are_relocated_to_the_farthest_points() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [30.0], [50.0]])
    centers = torch.tensor([[[1.0], [1000.0], [2000.0]]])
    blocks = points.split(2)
    relocated = relocate_empty_clusters(assign(blocks, centers, 5), centers, blocks)
    assert relocated.counts.tolist() == [[3, 1, 1]]
    assert relocated.means(centers).squeeze().tolist() == [1.0, 50.0, 30.0]


def test_surplus_empty_clusters_keep_finite_centers() -> None:
    points, centers = torch.zeros(1, 2), torch.arange(8.0).view(1, 4, 2)
    relocated = relocate_empty_clusters(assign([points], centers, 1), centers, [points])
    assert relocated.counts.sum() == 1
    assert relocated.means(centers).isfinite().all()
