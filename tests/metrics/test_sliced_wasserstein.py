"""Sliced Wasserstein distance of sets of images."""

from __future__ import annotations

import torch

from genexp.metrics.sliced_wasserstein import sliced_wasserstein


def test_sliced_wasserstein_compares_sets() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 1, 6, 6)
    assert sliced_wasserstein(images, images.flip(0)) < 1e-6
    other = torch.rand(200, 1, 6, 6)
    assert sliced_wasserstein(images, other) < 0.05 < sliced_wasserstein(images, 1 - images.square())
