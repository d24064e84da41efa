"""Generators and discriminators: layers, sizes and errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genexp.errors import ConfigError
from genexp.networks.dcgan import LAYOUTS, build_conv_discriminator, build_conv_generator
from genexp.networks.gan import build_dense_discriminator, build_dense_generator, init_weights
from tests.support.images import IMAGE_SHAPE

pytestmark = pytest.mark.usefixtures("one_thread")


def record_layer_sizes(
    network: nn.Sequential, inputs: Tensor, layer_class: type[nn.Module]
) -> list[tuple[int, int]]:
    """Return (channels, side) of the output of each layer of a class."""
    seen = []
    for module in network:
        inputs = module(inputs)
        if isinstance(module, layer_class):
            seen.append((inputs.shape[1], inputs.shape[-1]))
    return seen


def list_layer_types(network: nn.Sequential) -> list[str]:
    return [type(module).__name__ for module in network]


def test_dense_networks_match_the_reference() -> None:
    generator = build_dense_generator(128, [256, 512, 1024], IMAGE_SHAPE)
    discriminator = build_dense_discriminator(IMAGE_SHAPE, [1024, 512, 256], dropout=0.3)
    widths = [(layer.in_features, layer.out_features) for layer in generator if isinstance(layer, nn.Linear)]
    assert widths == [(128, 256), (256, 512), (512, 1024), (1024, 784)]
    widths = [(layer.in_features, layer.out_features) for layer in discriminator if isinstance(layer, nn.Linear)]
    assert widths == [(784, 1024), (1024, 512), (512, 256), (256, 1)]
    assert list_layer_types(generator) == [*["Linear", "LeakyReLU"] * 3, "Linear", "Tanh", "Unflatten"]
    assert list_layer_types(discriminator) == ["Flatten", *["Linear", "LeakyReLU", "Dropout"] * 3, "Linear"]


def test_convolutional_networks_match_the_reference() -> None:
    layout = LAYOUTS["valid"]
    generator = build_conv_generator(128, layout.plan_generator(IMAGE_SHAPE, 64), has_batch_norm=False)
    discriminator = build_conv_discriminator(
        1, layout.plan_discriminator(IMAGE_SHAPE, 128), norm="none", dropout=0.5
    )
    up = record_layer_sizes(generator, torch.randn(2, 128), nn.ConvTranspose2d)
    assert up == [(256, 3), (128, 7), (64, 15), (1, 28)]
    down = record_layer_sizes(discriminator, torch.randn(2, *IMAGE_SHAPE), nn.Conv2d)
    assert down == [(128, 14), (256, 7), (256, 4), (1, 1)]
    assert list_layer_types(generator) == [
        "Unflatten",
        *["ConvTranspose2d", "ReLU"] * 3,
        "ConvTranspose2d",
        "Tanh",
    ]
    assert list_layer_types(discriminator) == [*["Conv2d", "LeakyReLU", "Dropout"] * 3, "Conv2d", "Flatten"]
    last_kernels = [layer.kernel_size for layer in generator if isinstance(layer, nn.ConvTranspose2d)]
    assert last_kernels == [(3, 3), (3, 3), (3, 3), (2, 2)]
    assert not any(name.endswith("bias") for name, _ in [*generator.named_parameters()])
    assert not any(name.endswith("bias") for name, _ in [*discriminator.named_parameters()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", [5, 8, 16, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_match_the_image_size(layout: str, side: int, channels: int) -> None:
    shape = (channels, side, side)
    generator = build_conv_generator(5, LAYOUTS[layout].plan_generator(shape, 2), has_batch_norm=True)
    discriminator = build_conv_discriminator(
        channels, LAYOUTS[layout].plan_discriminator(shape, 2), norm="layer", dropout=0.1
    )
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, *shape)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (3, 1)


def test_doubling_layout_reaches_every_size() -> None:
    for side in range(5, 70):
        generator = build_conv_generator(
            3, LAYOUTS["doubling"].plan_generator((1, side, side), 1), has_batch_norm=False
        )
        assert generator(torch.randn(1, 3)).shape == (1, 1, side, side)


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        ("doubling", (1, 4, 4), "4×4 pixels: too small"),
        ("valid", (1, 3, 3), "3×3 pixels: too small"),
        ("valid", (1, 20, 20), "model.layout=valid"),
        ("valid", (1, 48, 48), "model.layout=valid"),
        ("doubling", (3, 32, 64), "32×64 pixels: must be square"),
        ("valid", (3, 32, 64), "32×64 pixels: must be square"),
    ],
)
def test_unsupported_image_sizes_are_reported(layout: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LAYOUTS[layout].plan_generator(shape, 4)


def test_initial_weights_reach_layers_with_spectral_normalization() -> None:
    network = build_dense_discriminator(IMAGE_SHAPE, [512], has_spectral_norm=True)
    init_weights(network, 0.02)
    parameters = dict(network.named_parameters())
    weight = parameters["1.parametrizations.weight.original"]
    torch.testing.assert_close(weight.std(), torch.tensor(0.02), rtol=0.01, atol=0)
    assert torch.equal(parameters["1.bias"], torch.zeros(512))
