"""Batch statistics of a single shard."""

from __future__ import annotations

import torch

from genexp.sharding import batch_mean, gather_rows, local_rows


def test_single_shard_is_the_full_batch() -> None:
    rows = torch.randn(5, 3)
    assert torch.equal(batch_mean(rows), rows.mean(0))
    assert gather_rows(rows) is rows
    assert torch.equal(local_rows(rows), rows)
