"""Binary images."""

from __future__ import annotations

import torch

from genexp.images.binarize import draw_bits, draw_fixed_bits


def test_drawn_bits_are_those_of_torch() -> None:
    images = torch.rand(5, 1, 8, 7)
    torch.manual_seed(1)
    expected = torch.bernoulli(images)
    torch.manual_seed(1)
    assert torch.equal(draw_bits(images), expected)


def test_fixed_bits_depend_on_the_image_alone() -> None:
    images = torch.randint(0, 256, (50, 2, 8, 7)) / 255
    bits = draw_fixed_bits(images)
    assert torch.equal(draw_fixed_bits(images[7:9]), bits[7:9])
    assert torch.equal(draw_fixed_bits(images.flip(0)), bits.flip(0))
    assert torch.equal(draw_fixed_bits(images.double()), bits.double())


def test_fixed_bits_have_the_brightness_as_probability() -> None:
    """Images differ in one pixel each, so that all other pixels are equal and their thresholds are not."""
    for brightness in (0, 51, 204, 255):
        images = torch.full((3000, 1, 5, 5), brightness / 255)
        images.flatten(1)[:, :2] = (
            torch.arange(3000).unsqueeze(1).div(torch.tensor([1, 256]), rounding_mode="floor") % 256 / 255
        )
        bits = draw_fixed_bits(images).flatten(1)[:, 2:]
        torch.testing.assert_close(bits.mean(0), torch.full((23,), brightness / 255), rtol=0, atol=0.04)
        if 0 < brightness < 255:
            correlations = torch.corrcoef(bits.T).fill_diagonal_(0)
            assert correlations.abs().max() < 0.1
