"""Chunk sizes and access to points in blocks."""

from __future__ import annotations

import torch

from genexp.kmeans.blocks import get_chunk_size, take


def test_chunks_are_larger_on_a_gpu() -> None:
    cpu_tensor, meta_tensor = torch.empty(0), torch.empty(0, device="meta")
    assert get_chunk_size(2**20, 1024, cpu_tensor) == 2**10
    assert get_chunk_size(2**20, 1024, meta_tensor) == 2**16
    assert get_chunk_size(2**20, 2**21, cpu_tensor) == 1


def test_take_returns_points_in_the_order_of_the_indices() -> None:
    points = torch.arange(20.0).view(10, 2)
    assert torch.equal(take(points.split(3), torch.tensor([7, 0, 9, 3, 3])), points[[7, 0, 9, 3, 3]])
