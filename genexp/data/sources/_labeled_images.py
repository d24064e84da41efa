"""Shared code of small labeled image data sets."""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.data.dataset import Dataset, Split
from genexp.data.sampling import stratified_split

DIGIT_NAMES = tuple("0123456789")


def make_labeled_dataset(
    name: str, images: Tensor, labels: Tensor, *, test_count: int, class_names: tuple[str, ...]
) -> Dataset:
    """Return a data set from uint8 images (n, channels, height, width) and labels (n,), with a fixed random split.

    Each class has the same number of samples in the test split.
    """
    splits = (
        Split({"image": images[indices], "label": labels[indices].to(torch.int64)})
        for indices in stratified_split(labels, test_count, "split", name)
    )
    train, test = splits
    return Dataset(name, train, test, class_names)
