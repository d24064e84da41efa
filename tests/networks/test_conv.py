"""Networks that fit the images they are given, and are the source's where those are 28×28."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from genexp.errors import ConfigError
from genexp.networks.conv import ConvLayerSpec, build_conv_decoder, build_conv_encoder, feature_map_sizes
from genexp.networks.mlp import ACTIVATIONS, build_dense_decoder, build_dense_encoder, build_mlp
from tests.support.compose import make_technique

Shape = tuple[int, int, int]

DENSE_TECHNIQUES = ("stacked_autoencoder", "denoising_autoencoder", "latent3d_autoencoder", "vae")
CONV_TECHNIQUES = ("conv_autoencoder", "conv_denoising_autoencoder")
UNPADDED_LAYERS = [ConvLayerSpec(16, 3, 2, 0), ConvLayerSpec(32, 3, 2, 0), ConvLayerSpec(64, 3, 1, 0)]
PADDED_LAYERS = [
    ConvLayerSpec(8, 3, 2, 1),
    ConvLayerSpec(16, 3, 2, 1, has_batch_norm=True),
    ConvLayerSpec(32, 3, 2, 0),
]


def record_layer_shapes(network: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    """Return the shape of one sample behind each layer that computes."""
    shapes: list[tuple[int, ...]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        for layer in network.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return shapes


def count_parameters(*networks: nn.Module) -> int:
    return sum(weight.numel() for network in networks for weight in network.parameters())


# --- The reference's sizes.


def test_conv_autoencoder_matches_the_reference_at_28_pixels() -> None:
    technique = make_technique("conv_autoencoder", (1, 28, 28), "experiment=conv_autoencoder_reference")
    assert record_layer_shapes(technique.encoder, torch.zeros(2, 1, 28, 28)) == [
        (16, 13, 13),
        (32, 6, 6),
        (64, 4, 4),
        (10,),
    ]
    assert record_layer_shapes(technique.decoder, torch.zeros(2, 10)) == [
        (1024,),
        (32, 6, 6),
        (16, 13, 13),
        (1, 28, 28),
    ]
    first, second, last = (layer for layer in technique.decoder if isinstance(layer, nn.ConvTranspose2d))
    assert [layer.output_padding for layer in (first, second, last)] == [(0, 0), (0, 0), (1, 1)]
    assert [layer.stride for layer in (first, second, last)] == [(1, 1), (2, 2), (2, 2)]


def test_conv_denoising_autoencoder_matches_the_reference_at_28_pixels() -> None:
    name = "conv_denoising_autoencoder"
    technique = make_technique(name, (1, 28, 28), f"experiment={name}_reference")
    down = [(8, 14, 14), (16, 7, 7), (32, 3, 3), (128,), (4,)]
    assert record_layer_shapes(technique.encoder, torch.zeros(2, 1, 28, 28)) == down
    assert record_layer_shapes(technique.decoder, torch.zeros(2, 4)) == [
        (128,),
        (288,),
        (16, 7, 7),
        (8, 14, 14),
        (1, 28, 28),
    ]
    ups = [layer for layer in technique.decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.output_padding for layer in ups] == [(0, 0), (1, 1), (1, 1)]
    assert [layer.padding for layer in ups] == [(0, 0), (1, 1), (1, 1)]
    layer_types = [type(layer).__name__ for layer in technique.encoder]
    assert layer_types == [
        *("Conv2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "ReLU"),
        *("Flatten", "Linear", "ReLU", "Linear"),
    ]
    assert [type(layer).__name__ for layer in technique.decoder] == [
        *("Linear", "ReLU", "Linear", "ReLU", "Unflatten"),
        *("ConvTranspose2d", "BatchNorm2d", "ReLU", "ConvTranspose2d", "BatchNorm2d", "ReLU", "ConvTranspose2d"),
    ]


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        # Linear a→b has a·b + b parameters; a convolution of kernel 3 from a to b channels has 9·a·b + b.
        (
            "stacked_autoencoder",
            784 * 128 + 128 + 128 * 32 + 32 + 32 * 10 + 10,
            320 + 32 + 4096 + 128 + 100352 + 784,
        ),
        ("conv_autoencoder", 160 + 4640 + 18496 + 10250, 11264 + 18464 + 4624 + 145),
        (
            "conv_denoising_autoencoder",
            80 + 1168 + 32 + 4640 + (288 * 128 + 128) + (128 * 4 + 4),
            (4 * 128 + 128) + (128 * 288 + 288) + (9 * 32 * 16 + 16) + 32 + (9 * 16 * 8 + 8) + 16 + (9 * 8 + 1),
        ),
        (
            "latent3d_autoencoder",
            (784 * 128 + 128) + (128 * 64 + 64) + (64 * 12 + 12) + (12 * 3 + 3),
            (3 * 12 + 12) + (12 * 64 + 64) + (64 * 128 + 128) + (128 * 784 + 784),
        ),
    ],
)
def test_reference_presets_have_the_parameter_counts_of_the_source(name: str, encoder: int, decoder: int) -> None:
    technique = make_technique(name, (1, 28, 28), f"experiment={name}_reference")
    assert (count_parameters(technique.encoder), count_parameters(technique.decoder)) == (encoder, decoder)


def list_activations(network: nn.Module) -> list[str]:
    layer_types = tuple(type(make()) for make in ACTIVATIONS.values())
    return [type(layer).__name__ for layer in network.modules() if isinstance(layer, layer_types)]


def test_reference_presets_have_the_activations_of_the_source() -> None:
    stacked = make_technique("stacked_autoencoder", (1, 28, 28), "experiment=stacked_autoencoder_reference")
    assert list_activations(stacked.encoder) == ["ReLU"] * 3, "the latent has one too"
    assert list_activations(stacked.decoder) == ["ReLU"] * 2
    narrow = make_technique("latent3d_autoencoder", (1, 28, 28), "experiment=latent3d_autoencoder_reference")
    assert list_activations(narrow.encoder) == ["ReLU"] * 3
    assert isinstance(list(narrow.encoder)[-1], nn.Linear), "this latent is linear"
    vae = make_technique("vae", (1, 28, 28), "experiment=vae_reference")
    assert list_activations(vae.encoder) == list_activations(vae.decoder) == ["LeakyReLU"] * 2
    assert vae.encoder[2].negative_slope == 0.2


# --- Other sizes.

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
    # Backwards, each layer of the decoder has the shape of one before the latent.
    assert up[1:-1] == down[-3::-1]
    assert up[0] == (math.prod(down[-2]),)


@pytest.mark.parametrize("name", [*DENSE_TECHNIQUES, *CONV_TECHNIQUES])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 20, 23)], ids=str)
def test_technique_accepts_any_image_shape(name: str, shape: Shape) -> None:
    technique = make_technique(name, shape, f"model={name}")
    images = torch.rand(4, *shape)
    technique.eval()
    back = technique.reconstruct(images)
    assert back.shape == images.shape
    assert back.min() >= 0
    assert back.max() <= 1


@pytest.mark.parametrize(("side", "smallest"), [(1, 15), (2, 15), (10, 15), (14, 15)])
def test_images_too_small_for_the_convolutions_are_rejected(side: int, smallest: int) -> None:
    with pytest.raises(ConfigError, match=f"images of {side}×40 pixels are too small") as excinfo:
        build_conv_encoder((1, side, 40), UNPADDED_LAYERS, [10])
    assert "model=stacked_autoencoder" in str(excinfo.value)
    assert build_conv_encoder((1, smallest, 40), UNPADDED_LAYERS, [10])(torch.zeros(2, 1, smallest, 40)).shape == (
        2,
        10,
    )


@pytest.mark.parametrize("name", CONV_TECHNIQUES)
def test_technique_rejects_images_that_are_too_small(name: str) -> None:
    with pytest.raises(ConfigError, match="too small for this convolutional model"):
        make_technique(name, (1, 4, 4), f"model={name}")


def test_feature_map_sizes_match_torch() -> None:
    for side in range(15, 70, 3):
        for layers in (UNPADDED_LAYERS, PADDED_LAYERS):
            images = torch.zeros(1, 1, side, side + 5)
            expected = [(side, side + 5)]
            for layer in layers:
                images = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding).forward(images)
                expected.append((images.shape[2], images.shape[3]))
            assert feature_map_sizes((side, side + 5), layers) == expected


# --- Dense networks.


def test_mlp_has_activations_between_layers_and_a_last_activation() -> None:
    network = build_mlp([5, 4, 3], activation="relu", last_activation="tanh")
    assert [type(layer).__name__ for layer in network] == ["Linear", "ReLU", "Linear", "Tanh"]
    network = build_mlp([5, 4, 3], activation="linear")
    assert [type(layer).__name__ for layer in network] == ["Linear", "Linear"]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 9)], ids=str)
@pytest.mark.parametrize("widths", [[6], [16, 6]])
def test_dense_encoder_and_decoder_have_matching_shapes(shape: Shape, widths: Sequence[int]) -> None:
    encoder = build_dense_encoder(shape, widths, activation="silu")
    decoder = build_dense_decoder(shape, widths[::-1], activation="silu")
    assert encoder(torch.rand(4, *shape)).shape == (4, 6)
    assert decoder(torch.rand(4, 6)).shape == (4, *shape)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_match_their_names(name: str) -> None:
    values = torch.linspace(-3, 3, 13)
    expected = {
        "relu": torch.relu(values),
        "leaky_relu": torch.where(values < 0, 0.2 * values, values),
        "gelu": nn.functional.gelu(values),
        "silu": values * values.sigmoid(),
        "tanh": values.tanh(),
        "linear": values,
    }
    torch.testing.assert_close(ACTIVATIONS[name]()(values), expected[name])
