"""U-Net, ResNet generator and PatchGAN."""

from __future__ import annotations

import pytest
import torch

from genexp.errors import ConfigError
from genexp.networks.patchgan import build_patchgan
from genexp.networks.resnet import build_resnet_generator
from genexp.networks.unet import UNet

IMAGE_SIZES = [(8, 8), (28, 28), (19, 30), (64, 64), (256, 256)]


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_networks_accept_any_image_size(size: tuple[int, int]) -> None:
    images = torch.randn(2, 1, *size)
    for network in (
        UNet(1, 3, size, width=4, norm="batch", dropout=0.5),
        build_resnet_generator(1, 3, size, width=4, num_blocks=None),
    ):
        made = network(images)
        assert made.shape == (2, 3, *size)
        assert made.abs().max() <= 1
    assert build_patchgan(1, size, width=4, norm="batch")(images).shape[:2] == (2, 1)


@pytest.mark.parametrize(("side", "patch"), [(8, 1), (28, 16), (64, 34), (256, 70)])
def test_patchgan_score_has_the_expected_receptive_field(side: int, patch: int) -> None:
    images = torch.randn(1, 1, side, side, requires_grad=True)
    scores = build_patchgan(1, (side, side), width=4, norm="none")(images)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    assert images.grad is not None
    seen = images.grad[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [patch, patch]


def test_unet_rejects_images_that_are_too_small() -> None:
    with pytest.raises(ConfigError, match="3×3 pixels: too small"):
        UNet(1, 1, (3, 3), width=4, norm="batch", dropout=0.0)
