"""Splits whose samples are filled with their number, in memory or lazy."""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.data.dataset import LazyStream, Split
from genexp.errors import DataError

NUM_SAMPLES = 23


class NumberedImages(LazyStream):
    """Lazy stream whose image i is filled with i. Image `broken_index` cannot be read."""

    sample_shape, dtype = (1, 2, 3), torch.uint8

    def __init__(self, broken_index: int | None = None) -> None:
        self.broken_index = broken_index

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        if index == self.broken_index:
            raise DataError(f"{index}.png cannot be read; replace it")
        return torch.full(self.sample_shape, index, dtype=torch.uint8)


def make_split() -> Split:
    """Return a split in memory whose images and labels are the numbers of the samples."""
    images = torch.arange(NUM_SAMPLES, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 3)
    return Split({"image": images, "label": torch.arange(NUM_SAMPLES)})


def make_lazy_split(broken_index: int | None = None) -> Split:
    """Return the same split with lazy images."""
    return Split({"image": NumberedImages(broken_index), "label": torch.arange(NUM_SAMPLES)})
