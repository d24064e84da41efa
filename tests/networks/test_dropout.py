"""Dropout with masks drawn as random words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genexp.networks.dropout import Dropout, dropout_mask

SHAPES = {"rows": (200, 500), "images": (40, 5, 20, 25)}


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_dropout_zeroes_the_given_fraction_and_keeps_the_mean(shape: str, p: float) -> None:
    torch.manual_seed(1)
    values = torch.ones(SHAPES[shape])
    dropped = Dropout(p)(values)
    deviation = (p * (1 - p) / values.numel()) ** 0.5
    assert abs((dropped == 0).double().mean().item() - p) < 4 * deviation
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=1e-4)
    assert dropped.double().mean().item() == pytest.approx(1, abs=4 * deviation / (1 - p))


def test_elements_are_dropped_independently_of_their_neighbors() -> None:
    torch.manual_seed(2)
    kept = (dropout_mask(torch.empty(400, 400), 0.5) > 0).double() - 0.5
    for dim, distance in ((0, 1), (1, 1), (1, 4)):  # four neighbors come from one random word
        assert abs((kept * kept.roll(distance, dims=dim)).mean().item()) < 4 * 0.25 / 400


def test_masks_follow_the_generator_and_differ_between_calls() -> None:
    values = torch.ones(30, 30)
    torch.manual_seed(3)
    first, second = Dropout(0.5)(values), Dropout(0.5)(values)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(values), first)
    assert not torch.equal(first, second)
    own = torch.Generator().manual_seed(3)
    assert torch.equal(dropout_mask(values, 0.5, own), first)


def test_gradients_use_the_same_mask_as_values() -> None:
    values = torch.ones(50, requires_grad=True)
    dropped = Dropout(0.4)(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0])
def test_extreme_rates_keep_everything_or_nothing(p: float) -> None:
    values = torch.randn(4, 4)
    assert torch.equal(Dropout(p)(values), torch.zeros(4, 4) if p == 1 else values)


def test_dropout_is_the_identity_in_eval_mode() -> None:
    values = torch.randn(4, 4)
    assert Dropout(0.5).eval()(values) is values


def test_masks_keep_memory_format_and_dtype() -> None:
    values = torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert Dropout(0.5)(values).is_contiguous(memory_format=torch.channels_last)
    assert dropout_mask(values.bfloat16(), 0.5).dtype == torch.bfloat16


def test_dropout_is_a_subclass_of_torch_dropout() -> None:
    assert isinstance(Dropout(0.5), nn.Dropout)
