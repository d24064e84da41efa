"""In which order samples are taken: always a pure function of a seed, never of what was drawn before."""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.seeding import derive_seed


def permutation(count: int, *seed_parts: int | str) -> Tensor:
    """Return 0 … `count` - 1 in an order that depends on the seed parts alone: int64, on the CPU."""
    generator = torch.Generator().manual_seed(derive_seed(*seed_parts))
    return torch.randperm(count, generator=generator)


def round_robin(labels: Tensor, *seed_parts: int | str) -> Tensor:
    """Return the indices of `labels` (samples,) so that classes take turns: every prefix is class-balanced.

    Within a class the samples keep their order, or are shuffled where seed parts are given. Classes that
    run out leave the turns to the others.
    """
    order = permutation(len(labels), *seed_parts) if seed_parts else torch.arange(len(labels))
    _, classes = torch.unique(labels[order], return_inverse=True)
    by_class = torch.argsort(classes, stable=True)
    counts = torch.bincount(classes)
    starts = counts.cumsum(0) - counts  # (classes,) where each class begins in by_class
    turns = torch.empty_like(classes)
    turns[by_class] = torch.arange(len(labels)) - starts[classes[by_class]]
    return order[torch.argsort(turns * len(counts) + classes)]


def stratified_split(labels: Tensor, test_count: int, *seed_parts: int | str) -> tuple[Tensor, Tensor]:
    """Return the indices of a train and a test split with equal classes in the test split, each ascending."""
    order = round_robin(labels, *seed_parts)
    return order[test_count:].sort().values, order[:test_count].sort().values
