"""U-Net conditioned on time and class: shapes, size and conditioning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genexp.errors import ConfigError
from genexp.networks.conditional_unet import ConditionalUNet
from tests.support.compose import compose_config


def make_unet(size: tuple[int, int], channels: int = 1, width: int = 8, num_blocks: int = 1) -> ConditionalUNet:
    torch.manual_seed(0)
    return ConditionalUNet(channels, size, width=width, num_blocks=num_blocks, num_classes=3)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (28, 28), (27, 33), (40, 20)])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_output_has_the_shape_of_the_images(size: tuple[int, int], num_blocks: int) -> None:
    images = torch.randn(2, 3, *size)
    network = make_unet(size, channels=3, num_blocks=num_blocks)
    assert network(images, torch.rand(2), torch.tensor([0, 2])).shape == images.shape


def test_too_small_images_are_rejected() -> None:
    with pytest.raises(ConfigError, match="3×9 pixels: too small"):
        make_unet((3, 9))


def test_default_network_has_at_most_half_a_million_parameters() -> None:
    model = compose_config("model=flow_matching").model
    network = make_unet((28, 28), width=model.width, num_blocks=model.blocks)
    assert 100_000 <= sum(weight.numel() for weight in network.parameters()) <= 500_000


def test_output_depends_on_time_and_class() -> None:
    network = make_unet((8, 8))
    for weight in network.parameters():  # residual blocks start as the identity
        nn.init.normal_(weight, 0, 0.2)
    images, times, classes = torch.randn(1, 1, 8, 8), torch.tensor([0.3]), torch.tensor([1])
    output = network(images, times, classes)
    assert not torch.allclose(output, network(images, times + 0.01, classes), atol=1e-4)
    assert not torch.allclose(output, network(images, times, classes - 1), atol=1e-4)
