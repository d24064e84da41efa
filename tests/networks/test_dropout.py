"""Dropout that draws its own way is dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genexp.device import flush_denormals
from genexp.networks.dropout import Dropout, dropout_mask

SHAPES = {"rows": (200, 500), "images": (40, 5, 20, 25)}


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_many_become_zero_as_the_rate_says_and_the_mean_stays(shape: str, p: float) -> None:
    torch.manual_seed(1)
    values = torch.ones(SHAPES[shape])
    dropped = Dropout(p)(values)
    deviation = (p * (1 - p) / values.numel()) ** 0.5
    assert abs((dropped == 0).double().mean().item() - p) < 4 * deviation
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=1e-4)
    assert dropped.double().mean().item() == pytest.approx(1, abs=4 * deviation / (1 - p))


def test_numbers_are_dropped_independently_of_their_neighbors() -> None:
    torch.manual_seed(2)
    kept = (dropout_mask(torch.empty(400, 400), 0.5) > 0).double() - 0.5
    for dim, distance in ((0, 1), (1, 1), (1, 4)):  # four of them come from one random word
        assert abs((kept * kept.roll(distance, dims=dim)).mean().item()) < 4 * 0.25 / 400


def test_draws_follow_the_generator_and_each_is_another() -> None:
    values = torch.ones(30, 30)
    torch.manual_seed(3)
    first, second = Dropout(0.5)(values), Dropout(0.5)(values)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(values), first)
    assert not torch.equal(first, second)
    own = torch.Generator().manual_seed(3)
    assert torch.equal(dropout_mask(values, 0.5, own), first)


def test_gradients_pass_where_values_do() -> None:
    values = torch.ones(50, requires_grad=True)
    dropped = Dropout(0.4)(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0])
def test_a_rate_at_either_end_keeps_all_or_nothing(p: float) -> None:
    values = torch.randn(4, 4)
    assert torch.equal(Dropout(p)(values), torch.zeros(4, 4) if p == 1 else values)


def test_nothing_is_dropped_where_nothing_is_trained() -> None:
    values = torch.randn(4, 4)
    assert Dropout(0.5).eval()(values) is values


def test_masks_lie_in_memory_as_values_do() -> None:
    values = torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert Dropout(0.5)(values).is_contiguous(memory_format=torch.channels_last)
    assert dropout_mask(values.bfloat16(), 0.5).dtype == torch.bfloat16


def test_it_is_torchs_for_whoever_asks() -> None:
    assert isinstance(Dropout(0.5), nn.Dropout)


def test_tiny_numbers_are_zero_where_a_run_computes() -> None:
    torch.set_flush_denormal(False)  # which another test may have left otherwise
    tiny = torch.full((3,), 1e-39)
    try:
        flush_denormals()
        assert (tiny * 0.5 == 0).all()
    finally:
        torch.set_flush_denormal(False)
    assert (tiny * 0.5 > 0).all()
