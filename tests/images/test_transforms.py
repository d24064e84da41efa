"""Resizing and random affine transforms of images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.images.transforms import random_affine, resample, resize


@pytest.mark.parametrize("size", [(10, 31), (40, 20), (17, 64)])
def test_matrix_products_equal_the_antialiased_filter_of_torch(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, 24, 36)
    expected = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resample(images, size), expected)
    torch.testing.assert_close(resize(images, size), expected, rtol=0, atol=0)


def test_an_image_of_the_right_size_is_not_resized() -> None:
    images = torch.rand(2, 3, 24, 36)
    assert resize(images, (24, 36)) is images


def make_spot_image(height: int, width: int) -> Tensor:
    """Return one image with a bright spot right of the middle."""
    image = torch.zeros(1, 1, height, width)
    image[..., height // 2 - 1 : height // 2 + 1, -6:-4] = 1
    return image


def test_zero_affine_jitter_is_the_identity() -> None:
    images = torch.rand(5, 3, 12, 16)
    torch.testing.assert_close(random_affine(images, degrees=0, shift_pixels=0, zoom=0), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 48)])
def test_affine_jitter_rotates_without_distortion(height: int, width: int) -> None:
    """A rotated spot keeps its distance from the center for any aspect ratio."""
    torch.manual_seed(0)
    turned = random_affine(
        make_spot_image(height, width).expand(40, -1, -1, -1), degrees=25, shift_pixels=0, zoom=0
    )
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    mass = turned.sum((1, 2, 3))
    down = (turned.sum((1, 3)) * rows).sum(1) / mass
    right = (turned.sum((1, 2)) * columns).sum(1) / mass
    torch.testing.assert_close(
        (down.square() + right.square()).sqrt(), torch.full((40,), width / 2 - 5.0), rtol=0, atol=0.3
    )
    assert down.abs().max() > 2


def test_affine_jitter_shifts_by_pixels() -> None:
    torch.manual_seed(0)
    shifted = random_affine(make_spot_image(28, 28).expand(200, -1, -1, -1), degrees=0, shift_pixels=3, zoom=0)
    places = (shifted.sum((1, 2)) * torch.arange(28)).sum(1) / shifted.sum((1, 2, 3))
    assert 2.5 < float((places - 22.5).abs().max()) <= 3.01
