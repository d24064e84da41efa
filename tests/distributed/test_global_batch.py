"""Random draws and batch normalization of one shard of a global batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.distributed.global_batch import GlobalBatchMode
from genexp.networks.dropout import Dropout
from genexp.sharding import Shard

BATCH_SIZE, NUM_SHARDS = 4, 3
RANDOM_DRAWS: dict[str, Callable[[Tensor], Tensor]] = {  # functions of the rows of a shard
    "randn": lambda rows: torch.randn(len(rows), 2),
    "randn of a shape": lambda rows: torch.randn((len(rows), 2)),
    "randn by keyword": lambda rows: torch.randn(size=(len(rows),)),
    "randint": lambda rows: torch.randint(0, 9, (len(rows),)),
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "bernoulli": lambda rows: torch.bernoulli(torch.full_like(rows, 0.5)),
    "normal": lambda rows: torch.normal(torch.zeros_like(rows), 1.0),
    "normal of a shape": lambda rows: torch.normal(0.0, 1.0, (len(rows), 3)),
    "multinomial": lambda rows: torch.multinomial(torch.full((len(rows), 5), 0.2), 2),
    "in place": lambda rows: torch.empty(len(rows), 2).uniform_(),
    "a distribution": lambda rows: torch.distributions.Normal(torch.zeros_like(rows), 1.0).rsample(),
    "dropout": lambda rows: nn.Dropout(0.5)(rows + 1),
    "our dropout": lambda rows: Dropout(0.5)(rows + 1),
    "dropout of channels": lambda rows: nn.Dropout2d(0.5)(rows.expand(2, 2, -1, -1).permute(2, 3, 0, 1) + 1),
    "gumbel": lambda rows: F.gumbel_softmax(rows.expand(-1, 5)),
}


@pytest.mark.parametrize("index", range(NUM_SHARDS))
@pytest.mark.parametrize("case", RANDOM_DRAWS)
def test_random_draw_of_a_shard_equals_its_rows_of_the_full_batch(case: str, index: int) -> None:
    draw, samples = RANDOM_DRAWS[case], torch.arange(12.0).unsqueeze(1)
    shard = Shard(index, NUM_SHARDS)
    torch.manual_seed(1)
    full_draw, next_number = draw(samples), torch.rand(())
    torch.manual_seed(1)
    with GlobalBatchMode(shard, BATCH_SIZE, True):
        shard_draw, next_shard_number = draw(samples[shard.row_slice(len(samples))]), torch.rand(())
    assert torch.equal(shard_draw, full_draw[shard.row_slice(len(samples))])
    assert torch.equal(next_shard_number, next_number), "the state of the generator differs"


def test_random_draw_without_a_batch_axis_is_unchanged() -> None:
    torch.manual_seed(1)
    expected = torch.randn(7, BATCH_SIZE), torch.randperm(BATCH_SIZE), torch.rand(2)
    torch.manual_seed(1)
    with GlobalBatchMode(Shard(1, NUM_SHARDS), BATCH_SIZE, True):
        shard_draw = torch.randn(7, BATCH_SIZE), torch.randperm(BATCH_SIZE), torch.rand(2)
    assert all(torch.equal(one, other) for one, other in zip(shard_draw, expected, strict=True))


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 5)])
def test_synchronized_batch_norm_matches_torch(shape: tuple[int, ...]) -> None:
    """In one process, values, first and second gradients and running statistics are equal."""
    torch.manual_seed(1)
    values = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    layer_classes = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    seen = []
    for mode in (True, False):  # False: batch normalization of torch
        layer = layer_classes[len(shape)](3, dtype=torch.float64)
        nn.init.uniform_(layer.weight)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        with GlobalBatchMode(Shard(), len(values), mode):
            result = layer(values)
        (gradient,) = torch.autograd.grad(result.pow(3).sum(), values, create_graph=True)
        (second_gradient,) = torch.autograd.grad(gradient.square().sum(), values)
        seen.append((result, gradient, second_gradient, layer.running_mean, layer.running_var))
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)
