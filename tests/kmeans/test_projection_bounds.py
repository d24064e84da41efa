"""Validity and memory of the bounds from projections."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from genexp.kmeans.init import random_points
from genexp.kmeans.lloyd import assign, lloyd_step
from genexp.kmeans.projection_bounds import ProjectionBounds


@pytest.mark.parametrize("num_magnitudes", [0, 15])  # range of the norms of points, in powers of ten
def test_projection_bounds_are_lower_bounds(num_magnitudes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 12, generator=generator) @ torch.randn(12, 400, generator=generator)
    points[1500:] += 0.1 * torch.randn(1500, 400, generator=generator)  # the first half lies in the subspace
    points *= 10 ** torch.empty(3000, 1).uniform_(-num_magnitudes, num_magnitudes, generator=generator)
    points[-1] = 0
    projections = ProjectionBounds.from_blocks([points], points[None, :3], 3000)
    projections.set_projections(points)
    inner = points.double() @ points[:200].double().T
    lengths = points.double().norm(dim=1).clamp(min=1e-30)
    estimated = projections.dequantize().double() @ projections.project(points[:200]).double().T
    error = (estimated - inner) / (lengths[:, None] * lengths[:200])
    assert error.min() > -1e-6
    assert num_magnitudes or error[:1500].mean() < 2e-4  # and tight inside the subspace


def test_projection_bounds_do_not_keep_blocks_in_memory() -> None:
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

    projections = ProjectionBounds.from_blocks(GeneratedBlocks(), torch.zeros(1, 3, 400), 3000)
    assert len(block_refs) == 30
    assert projections.basis.shape == (400, 16)


def test_few_points_with_many_features_are_not_projected() -> None:
    points = torch.randn(9, 2**18, generator=torch.Generator().manual_seed(0))
    centers = random_points([points], 9, num_starts=1, num_clusters=3)
    _, cluster_sums = lloyd_step([points], centers, assign([points], centers, 9))
    assert not isinstance(cluster_sums.bounds, ProjectionBounds)
