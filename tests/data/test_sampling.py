"""Limits of data sets and the order of samples."""

from __future__ import annotations

import subprocess
import sys

import torch

from genexp.data.dataset import Dataset, Split
from genexp.data.sampling import interleave_classes, permutation, subset
from tests.support.datasets import count_labels, get_stream, load_dataset_config, load_values


def test_limit_keeps_both_splits_balanced() -> None:
    dataset = load_values(load_dataset_config("mnist_5k", limit=100))
    assert count_labels(dataset.train) == [10] * 10
    assert (len(dataset.test), sum(count_labels(dataset.test))) == (25, 25)


def test_a_larger_limit_contains_a_smaller_one() -> None:
    small, large = (load_values(load_dataset_config("digits", limit=limit)) for limit in (7, 30))
    assert torch.equal(get_stream(small.train, "image"), get_stream(large.train, "image")[:7])


def test_a_limit_above_the_size_changes_nothing_and_one_sample_is_enough() -> None:
    assert len(load_values(load_dataset_config("circles", limit=5000)).train) == 500
    least = load_values(load_dataset_config("circles", limit=1))
    assert (len(least.train), len(least.test)) == (1, 1)


def test_limit_subsets_unaligned_streams_independently() -> None:
    split = Split({"a": torch.arange(30), "b": torch.arange(20)}, is_aligned=False)
    cut = subset(Dataset("pair", split, split), 5)
    assert len(get_stream(cut.train, "a")) == len(get_stream(cut.train, "b")) == 5
    assert not torch.equal(get_stream(cut.train, "a"), get_stream(cut.train, "b"))


def test_the_order_is_the_same_in_another_process() -> None:
    code = "from genexp.data.sampling import permutation; print(permutation(50, 'order', 3, 7).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(permutation(50, "order", 3, 7).tolist())


def test_round_robin_alternates_until_classes_are_exhausted() -> None:
    labels = torch.tensor([0] * 5 + [1] * 2 + [7] * 3)
    assert labels[interleave_classes(labels, "any")].tolist() == [0, 1, 7, 0, 1, 7, 0, 7, 0, 0]
