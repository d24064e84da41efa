"""Distribution and inertia of k-means++ initialization."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genexp.kmeans.init import kmeans_plusplus
from tests.support.kmeans import BLOCK_ROWS, compute_inertia, load_points


def test_kmeans_plusplus_matches_scikit_learn_inertia() -> None:
    from sklearn.cluster import kmeans_plusplus as sklearn_plusplus

    points = load_points("digits")
    torch.manual_seed(0)
    ours = kmeans_plusplus(points.split(BLOCK_ROWS), len(points), num_starts=20, num_clusters=10)
    mean = np.mean([compute_inertia(points, centers) for centers in ours])
    references = [sklearn_plusplus(points.numpy(), 10, random_state=seed)[0] for seed in range(20)]
    assert mean == pytest.approx(
        np.mean([compute_inertia(points, torch.tensor(reference)) for reference in references]), rel=0.03
    )
    known = {tuple(point) for point in points.tolist()}
    assert all(tuple(center) in known for center in ours.flatten(0, 1).tolist())


def test_kmeans_plusplus_samples_by_squared_distance() -> None:
    """The distribution of the second of two centers is known in closed form."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    torch.manual_seed(0)
    centers = kmeans_plusplus(points.split(2), 3, num_starts=4000, num_clusters=2)
    from_origin = centers[(centers[:, 0] == 0).all(1)]
    # The better of two candidates is kept. With the far point the inertia is 1, with the near one 4:
    # the near point is the second center only if it was drawn twice.
    near = (from_origin[:, 1] == points[1]).all(1).float().mean()
    assert float(near) == pytest.approx((1 / 5) ** 2, abs=0.015)
