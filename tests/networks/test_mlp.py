"""Dense networks and activations."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from genexp.networks.mlp import ACTIVATIONS, build_dense_decoder, build_dense_encoder, build_mlp

Shape = tuple[int, int, int]


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
