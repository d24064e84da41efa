"""Accuracy of k-nearest neighbors and linear probes on codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genexp.metrics.probes import knn_accuracy, linear_probe_accuracy


def _make_blobs(samples: int, *, std: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (samples,), generator=generator)
    centers = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 3]])
    return centers[labels] + std * torch.randn(samples, 3, generator=generator), labels


def test_knn_accuracy_is_that_of_a_majority_vote_of_the_nearest_codes() -> None:
    train_codes, train_labels = _make_blobs(300, std=2, seed=0)
    test_codes, test_labels = _make_blobs(500, std=2, seed=1)
    nearest = torch.cdist(test_codes.double(), train_codes.double()).topk(10, largest=False).indices
    winners = torch.nn.functional.one_hot(train_labels[nearest]).sum(1).argmax(1)
    expected = float((winners == test_labels).double().mean())
    assert knn_accuracy(train_codes, train_labels, test_codes, test_labels) == pytest.approx(expected)


def test_knn_uses_all_codes_if_there_are_fewer_than_k() -> None:
    codes, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1, 1, 0])
    assert knn_accuracy(codes, labels, torch.tensor([[2.0]]), torch.tensor([1])) == 1


@pytest.mark.parametrize("probe", [knn_accuracy, linear_probe_accuracy])
def test_probes_are_accurate_only_on_separable_codes(probe: object) -> None:
    assert callable(probe)
    train, test = _make_blobs(500, std=0.2, seed=0), _make_blobs(500, std=0.2, seed=1)
    assert probe(*train, *test) > 0.99
    assert probe(*train, test[0], test[1].roll(1)) < 0.35


def test_linear_probe_is_invariant_to_scale_and_constant_features() -> None:
    (train, train_labels), (test, test_labels) = (
        _make_blobs(500, std=1.5, seed=0),
        _make_blobs(500, std=1.5, seed=1),
    )
    plain = linear_probe_accuracy(train, train_labels, test, test_labels)
    scale = torch.tensor([1e-4, 1.0, 1e4])

    def stretched(codes: Tensor) -> Tensor:
        return torch.cat((codes * scale, torch.full((len(codes), 1), 5.0)), dim=1)

    assert linear_probe_accuracy(stretched(train), train_labels, stretched(test), test_labels) == pytest.approx(
        plain, abs=0.005
    )


def test_linear_probe_handles_a_single_training_class() -> None:
    codes, labels = torch.randn(4, 2), torch.zeros(4, dtype=torch.long)
    assert linear_probe_accuracy(codes, labels, codes, torch.tensor([0, 0, 1, 1])) == 0.5
