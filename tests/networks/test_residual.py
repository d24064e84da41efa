"""Residual encoders and decoders: shapes, and the identity at the start."""

from __future__ import annotations

import pytest
import torch

from genexp.errors import ConfigError
from genexp.networks.residual import PreActivationBlock, build_residual_decoder, build_residual_encoder


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 50), (2, 31, 29)], ids=str)
def test_a_residual_decoder_restores_the_size(shape: tuple[int, int, int]) -> None:
    encoder = build_residual_encoder(shape, [4, 6, 8], [7, 5], num_blocks=1, activation="silu")
    decoder = build_residual_decoder(shape, [4, 6, 8], [5, 7], num_blocks=2, activation="silu")
    assert encoder(torch.rand(2, *shape)).shape == (2, 5)
    assert decoder(torch.rand(2, 5)).shape == (2, *shape)


def test_a_block_is_the_identity_before_training() -> None:
    features = torch.randn(2, 4, 5, 5)
    assert torch.equal(PreActivationBlock(4, activation="relu")(features), features)


def test_images_too_small_for_the_halvings_are_rejected() -> None:
    with pytest.raises(ConfigError, match="too small"):
        build_residual_encoder((1, 7, 7), [4, 4, 4], [5], num_blocks=1, activation="relu")
