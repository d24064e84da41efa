"""Sample orders and subsets, as pure functions of a seed without random state."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from genexp.data.dataset import Dataset, LazyStream, Split, Stream
from genexp.seeding import derive_seed


def permutation(count: int, *seed_parts: int | str) -> Tensor:
    """Return a permutation of 0 … `count` - 1 that depends on `seed_parts` only: int64 (count,), on the CPU."""
    generator = torch.Generator().manual_seed(derive_seed(*seed_parts))
    return torch.randperm(count, generator=generator)


def interleave_classes(labels: Tensor, *seed_parts: int | str) -> Tensor:
    """Return the indices of `labels` (samples,) with the classes in alternation: every prefix is class-balanced.

    Within a class the samples keep their order, or are shuffled if `seed_parts` are given. When a class has no
    samples left, the others continue.
    """
    order = permutation(len(labels), *seed_parts) if seed_parts else torch.arange(len(labels))
    _, classes = torch.unique(labels[order], return_inverse=True)
    by_class = torch.argsort(classes, stable=True)
    counts = torch.bincount(classes)
    starts = counts.cumsum(0) - counts  # (classes,) first position of each class in by_class
    positions_in_class = torch.empty_like(classes)
    positions_in_class[by_class] = torch.arange(len(labels)) - starts[classes[by_class]]
    return order[torch.argsort(positions_in_class * len(counts) + classes)]


def stratified_split(labels: Tensor, test_size: int, *seed_parts: int | str) -> tuple[Tensor, Tensor]:
    """Return the indices of a train and a test split, int64 (samples,) each, ascending.

    `labels` is (samples,). The test split is class-balanced.
    """
    order = interleave_classes(labels, *seed_parts)
    return order[test_size:].sort().values, order[:test_size].sort().values


class LazySubset(LazyStream):
    """The samples of another lazy stream at `indices` (int64 (n,)), in that order."""

    def __init__(self, stream: LazyStream, indices: Tensor) -> None:
        self.stream, self.indices = stream, indices.tolist()
        self.sample_shape, self.dtype = stream.sample_shape, stream.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return self.stream[self.indices[index]]


def subset(dataset: Dataset, limit: int | None) -> Dataset:
    """Return `dataset` with at most `limit` training samples and its test split reduced in proportion.

    The subset is a prefix of one fixed random order in which labeled classes alternate. It is therefore the same
    for every seed of a run, and a larger limit contains a smaller one.
    """
    train_size, test_size = len(dataset.train), len(dataset.test)
    if limit is None or limit >= train_size:
        return dataset
    test_limit = math.ceil(test_size * limit / train_size)
    return replace(dataset, train=subset_split(dataset.train, limit), test=subset_split(dataset.test, test_limit))


def take_samples(stream: Stream, indices: Tensor) -> Stream:
    """Return the samples of `stream` at `indices` (samples,), in that order."""
    return stream.index_select(0, indices) if isinstance(stream, Tensor) else LazySubset(stream, indices)


def subset_split(split: Split, limit: int) -> Split:
    """Return the first `limit` samples of `split` in a fixed random order, in which labeled classes alternate."""
    labels = split.streams.get("label")
    if split.is_aligned:
        order = (
            interleave_classes(labels, "limit")
            if isinstance(labels, torch.Tensor)
            else permutation(len(split), "limit")
        )
        orders = dict.fromkeys(split.streams, order)
    else:
        orders = {name: permutation(len(stream), "limit", name) for name, stream in split.streams.items()}
    return replace(
        split, streams={name: take_samples(stream, orders[name][:limit]) for name, stream in split.streams.items()}
    )
