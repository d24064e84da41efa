"""What a process computes of its rows of a batch is what one process computes of these rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.data.dataset import Split
from genexp.data.loading import make_loader
from genexp.data.stream import BatchStream
from genexp.distributed.global_batch import GlobalBatchMode
from genexp.distributed.rank import RankInfo, read_rank_info
from genexp.networks.dropout import Dropout
from genexp.sharding import Shard, batch_mean, gather_rows, local_rows

ROWS, PARTS = 4, 3
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {  # from the rows that are there
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


@pytest.mark.parametrize("index", range(PARTS))
@pytest.mark.parametrize("what", DRAWS)
def test_a_draw_for_rows_is_these_rows_of_the_whole_batchs(what: str, index: int) -> None:
    draw, samples = DRAWS[what], torch.arange(12.0).unsqueeze(1)
    part = Shard(index, PARTS)
    torch.manual_seed(1)
    all_drawn, next_number = draw(samples), torch.rand(())
    torch.manual_seed(1)
    with GlobalBatchMode(part, ROWS, True):
        drawn, following = draw(samples[part.row_slice(len(samples))]), torch.rand(())
    assert torch.equal(drawn, all_drawn[part.row_slice(len(samples))])
    assert torch.equal(following, next_number), "and the generator is where it would be"


def test_a_draw_that_is_not_for_rows_is_left_as_it_is() -> None:
    torch.manual_seed(1)
    expected = torch.randn(7, ROWS), torch.randperm(ROWS), torch.rand(2)
    torch.manual_seed(1)
    with GlobalBatchMode(Shard(1, PARTS), ROWS, True):
        drawn = torch.randn(7, ROWS), torch.randperm(ROWS), torch.rand(2)
    assert all(torch.equal(one, other) for one, other in zip(drawn, expected, strict=True))


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 5)])
def test_batch_norm_of_the_whole_is_torchs(shape: tuple[int, ...]) -> None:
    """Alone, in value, in first and second gradients and in what it remembers."""
    torch.manual_seed(1)
    values = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    kinds = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    seen = []
    for mode in (True, False):  # False: not synchronized, torch's own
        layer = kinds[len(shape)](3, dtype=torch.float64)
        nn.init.uniform_(layer.weight)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        with GlobalBatchMode(Shard(), len(values), mode):
            result = layer(values)
        (slope,) = torch.autograd.grad(result.pow(3).sum(), values, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), values)
        seen.append((result, slope, second, layer.running_mean, layer.running_var))
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)


def test_parts_of_batches_are_disjoint_and_make_up_the_batches() -> None:
    numbers = make_loader(Split({"point": torch.arange(30.0).unsqueeze(1)}), "cpu")
    whole_stream = BatchStream(numbers, 6, seed=1, dataset_name="numbers").iter_batches(1)
    streams = [
        BatchStream(numbers, 6, seed=1, dataset_name="numbers", shard=Shard(index, 3)).iter_batches(1)
        for index in range(3)
    ]
    for _ in range(7):
        parts = [next(stream)["point"] for stream in streams]
        assert [len(part) for part in parts] == [2, 2, 2]
        assert torch.equal(torch.cat(parts), next(whole_stream)["point"])


def test_alone_a_part_is_the_whole() -> None:
    rows = torch.randn(5, 3)
    assert torch.equal(batch_mean(rows), rows.mean(0))
    assert gather_rows(rows) is rows
    assert torch.equal(local_rows(rows), rows)


def test_a_place_is_what_torchrun_says() -> None:
    said = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node", "MASTER_PORT": "1"}
    assert read_rank_info({**said, "LOCAL_WORLD_SIZE": "2"}) == RankInfo(3, 4, local_rank=1, local_world_size=2)
    assert read_rank_info({**said, "WORLD_SIZE": "1", "RANK": "0"}) is None
    assert read_rank_info({"RANK": "3"}) is None, "a cluster's variable alone is no torchrun"
