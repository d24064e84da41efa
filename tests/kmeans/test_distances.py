"""Exactness of the nearest center."""

from __future__ import annotations

import torch

from genexp.kmeans.distances import nearest_center
from tests.support.kmeans import make_points


def test_nearest_center_is_exact() -> None:
    points, centers = make_points(900, 20), make_points(64, 20)
    exact = torch.cdist(points.double(), centers.double())
    assert torch.equal(nearest_center(points, centers), exact.argmin(1))
