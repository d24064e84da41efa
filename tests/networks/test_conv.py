"""Convolutional encoders and decoders: shapes and errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from genexp.errors import ConfigError
from genexp.networks.conv import ConvLayerSpec, build_conv_decoder, build_conv_encoder, compute_feature_map_sizes
from tests.support.networks import record_layer_shapes

Shape = tuple[int, int, int]
UNPADDED_LAYERS = [ConvLayerSpec(16, 3, 2, 0), ConvLayerSpec(32, 3, 2, 0), ConvLayerSpec(64, 3, 1, 0)]
PADDED_LAYERS = [
    ConvLayerSpec(8, 3, 2, 1),
    ConvLayerSpec(16, 3, 2, 1, has_batch_norm=True),
    ConvLayerSpec(32, 3, 2, 0),
]
SMALL_SHAPES: list[Shape] = [(1, 28, 28), (1, 32, 32), (1, 33, 33), (3, 17, 50), (2, 31, 29)]
LARGE_SHAPES: list[Shape] = [(3, 48, 48), (3, 64, 40), (3, 96, 96)]


@pytest.mark.parametrize("shape", [*SMALL_SHAPES, *LARGE_SHAPES], ids=str)
@pytest.mark.parametrize("layers", [UNPADDED_LAYERS, PADDED_LAYERS], ids=["valid", "padded"])
def test_a_decoder_mirrors_its_encoder(shape: Shape, layers: list[ConvLayerSpec]) -> None:
    encoder = build_conv_encoder(shape, layers, [7])
    decoder = build_conv_decoder(shape, layers, [7], batch_norms=[False] * 2)
    down = record_layer_shapes(encoder, torch.zeros(2, *shape))
    up = record_layer_shapes(decoder, torch.zeros(2, 7))
    assert up[-1] == shape
    assert down[-1] == (7,)
    # The decoder has the shapes of the encoder before the latent, in reverse order.
    assert up[1:-1] == down[-3::-1]
    assert up[0] == (math.prod(down[-2]),)


@pytest.mark.parametrize(("side", "smallest"), [(1, 15), (2, 15), (10, 15), (14, 15)])
def test_images_too_small_for_the_convolutions_are_rejected(side: int, smallest: int) -> None:
    with pytest.raises(ConfigError, match=f"images of {side}×40 pixels: too small") as excinfo:
        build_conv_encoder((1, side, 40), UNPADDED_LAYERS, [10])
    assert "model=stacked_autoencoder" in str(excinfo.value)
    assert build_conv_encoder((1, smallest, 40), UNPADDED_LAYERS, [10])(torch.zeros(2, 1, smallest, 40)).shape == (
        2,
        10,
    )


def test_feature_map_sizes_match_torch() -> None:
    for side in range(15, 70, 3):
        for layers in (UNPADDED_LAYERS, PADDED_LAYERS):
            images = torch.zeros(1, 1, side, side + 5)
            expected = [(side, side + 5)]
            for layer in layers:
                images = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding).forward(images)
                expected.append((images.shape[2], images.shape[3]))
            assert compute_feature_map_sizes((side, side + 5), layers) == expected
