"""Resizing and random affine transforms of images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.images.transforms import (
    DIFFERENTIABLE_AUGMENTATIONS,
    Augmentation,
    cut_out,
    erase_bands,
    flip_and_shift,
    jitter_color,
    random_affine,
    resample,
    resize,
    scale_color,
    translate,
)


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


def test_affine_jitter_shears_rows_in_proportion_to_their_distance_from_the_center() -> None:
    torch.manual_seed(0)
    line = torch.zeros(1, 1, 21, 41)
    line[..., 19:22] = 1  # a vertical line
    sheared = random_affine(line.expand(100, -1, -1, -1), degrees=0, shift_pixels=0, zoom=0, shear=0.5)
    columns = (sheared * torch.arange(41)).sum(3).squeeze(1) / sheared.sum(3).squeeze(1)  # (images, rows)
    slopes = (columns[:, -1] - columns[:, 0]) / 20
    rows = torch.arange(21) - 10
    torch.testing.assert_close(columns, 20 + slopes[:, None] * rows, rtol=0, atol=0.2)
    assert 0.4 < float(slopes.abs().max()) <= 0.51


def test_erased_bands_cover_the_width_of_some_images() -> None:
    torch.manual_seed(0)
    erased = erase_bands(torch.ones(1000, 2, 28, 9), 0.3)
    is_row_kept = erased[:, 0, :, 0].bool()
    assert torch.equal(erased, is_row_kept[:, None, :, None].expand_as(erased).float())
    num_erased = (~is_row_kept).sum(1)
    assert set(num_erased.tolist()) == {0, 5}
    assert 0.25 < float((num_erased > 0).float().mean()) < 0.35
    assert is_row_kept[:, [*range(5), *range(23, 28)]].all()
    assert torch.equal(erase_bands(torch.ones(3, 1, 1, 1), 0.0), torch.ones(3, 1, 1, 1))


def test_flips_and_crops_move_whole_pixels() -> None:
    images = torch.rand(3, 2, 5, 7)
    flags, zeros = torch.tensor([True, False, True]), torch.zeros(3, dtype=torch.int64)
    flipped = flip_and_shift(images, flags, zeros, zeros)
    assert torch.equal(flipped[0], images[0].flip(2))
    assert torch.equal(flipped[1], images[1])
    cropped = flip_and_shift(images, flags, torch.tensor([0, 2, -1]), torch.tensor([-3, 1, 0]))
    padded = F.pad(torch.stack([images[0].flip(2), images[1], images[2].flip(2)]), (3, 3, 3, 3))
    assert torch.equal(cropped[0], padded[0, :, 6:11, 3:10])
    assert torch.equal(cropped[1], padded[1, :, 2:7, 1:8])
    assert torch.equal(cropped[2], padded[2, :, 3:8, 4:11])


def test_augmentation_has_the_given_ranges_and_depends_on_the_draws_of_each_image() -> None:
    draws = torch.rand(400, Augmentation.num_draws, generator=torch.Generator().manual_seed(0))
    spot = torch.zeros(400, 1, 9, 9)
    spot[:, :, 4, 2] = 1
    moved = Augmentation(flip=True, crop=2).apply(spot, draws)
    places = moved.flatten(1).argmax(1)
    assert set((places // 9).tolist()) == {2, 3, 4, 5, 6}
    assert set((places % 9).tolist()) == {0, 1, 2, 3, 4, 5, 6, 7, 8}  # 2 and 6, each shifted by up to 2
    images = torch.rand(400, 3, 9, 9)
    everything = Augmentation(flip=True, crop=2, rotation=30, jitter=0.4)
    changed = everything.apply(images, draws)
    torch.testing.assert_close(everything.apply(images[7:9], draws[7:9]), changed[7:9], rtol=0, atol=1e-6)
    assert Augmentation().apply(images, draws) is images
    gray = torch.full((400, 1, 2, 2), 0.5)
    levels = Augmentation(jitter=0.4).apply(gray, draws)[:, 0, 0, 0]
    assert 0.3 <= float(levels.min()) < 0.31
    assert 0.69 < float(levels.max()) <= 0.7


def test_color_factors_of_one_are_the_identity_and_of_zero_remove_a_property() -> None:
    images = torch.rand(2, 3, 4, 4)
    ones = torch.ones(2, 3)
    torch.testing.assert_close(scale_color(images, ones), images)
    assert not scale_color(images, ones * torch.tensor([0.0, 1, 1])).any()
    flat = scale_color(images, ones * torch.tensor([1.0, 0, 1]))
    torch.testing.assert_close(flat, images.mean((1, 2, 3), keepdim=True).expand_as(flat))
    gray = scale_color(images, ones * torch.tensor([1.0, 1, 0]))
    torch.testing.assert_close(gray[:, 0], gray[:, 1])


def test_color_jitter_changes_brightness_and_contrast_of_each_image() -> None:
    torch.manual_seed(0)
    images = torch.rand(500, 2, 6, 5) - 0.5
    changed = jitter_color(images)
    shifts = changed.mean((1, 2, 3)) - images.mean((1, 2, 3))
    factors = changed.std((1, 2, 3)) / images.std((1, 2, 3))
    assert -0.5 <= shifts.min() < -0.45 < 0.45 < shifts.max() <= 0.5
    assert 0.5 <= factors.min() < 0.55 < 1.45 < factors.max() <= 1.5001


def test_translation_shifts_by_whole_pixels_and_fills_with_zeros() -> None:
    torch.manual_seed(0)
    images = torch.zeros(300, 1, 16, 24)
    images[:, :, 8, 12] = 1
    rows, columns = translate(images).flatten(1).argmax(1) // 24, translate(images).flatten(1).argmax(1) % 24
    assert rows.unique().tolist() == list(range(6, 11))
    assert columns.unique().tolist() == list(range(9, 16))
    edge = translate(torch.ones(300, 1, 16, 24))
    assert set(edge.unique().tolist()) == {0.0, 1.0}
    assert edge.sum((1, 2, 3)).min() == 14 * 21


def test_cutout_clears_a_square_of_half_the_size() -> None:
    torch.manual_seed(0)
    cut = cut_out(torch.ones(300, 2, 16, 24))
    sizes = (cut[:, 0] == 0).sum((1, 2))
    assert sizes.max() == 9 * 13  # a center and a quarter of the size on both sides
    assert sizes.min() >= 5 * 7  # at a corner
    assert torch.equal(cut[:, 0], cut[:, 1])


@pytest.mark.parametrize("name", sorted(DIFFERENTIABLE_AUGMENTATIONS))
def test_gradients_pass_through_augmentations(name: str) -> None:
    images = torch.rand(8, 1, 9, 7, requires_grad=True)
    DIFFERENTIABLE_AUGMENTATIONS[name](images).sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1) != 0).any(1).all()
