"""Accuracy of labels predicted from latent codes by nearest neighbors and by a linear probe."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

BLOCK_SIZE = 1000  # test codes whose distances to the training codes are in memory at once
MAX_PROBE_ITERATIONS = 200


def knn_accuracy(
    train_codes: Tensor, train_labels: Tensor, test_codes: Tensor, test_labels: Tensor, neighbors: int = 10
) -> float:
    """Return the accuracy, in [0, 1], of a majority vote of the `neighbors` nearest training codes.

    Codes are (samples, features), labels (samples,). Distances are Euclidean, without standardization. A tied
    vote goes to the smaller label. With fewer training codes than `neighbors`, all vote.
    """
    references = train_codes.flatten(1).float()
    neighbors = min(neighbors, len(references))
    num_classes = int(torch.maximum(train_labels.max(), test_labels.max())) + 1
    correct = 0
    for codes, truth in zip(
        test_codes.flatten(1).float().split(BLOCK_SIZE), test_labels.split(BLOCK_SIZE), strict=True
    ):
        nearest = torch.cdist(codes, references).topk(neighbors, largest=False).indices  # (block, neighbors)
        voters = train_labels[nearest]
        votes = torch.zeros(len(codes), num_classes, device=codes.device)
        votes.scatter_add_(1, voters, torch.ones_like(voters, dtype=votes.dtype))
        correct += int((votes.argmax(1) == truth).sum())
    return correct / len(test_labels)


def linear_probe_accuracy(
    train_codes: Tensor, train_labels: Tensor, test_codes: Tensor, test_labels: Tensor
) -> float:
    """Return the test accuracy, in [0, 1], of logistic regression on the codes.

    Codes are (samples, features), labels (samples,). Codes are standardized by the training codes. The probe is
    scored after at most 200 L-BFGS iterations, whether it has converged or not.
    """
    from sklearn.linear_model import LogisticRegression

    if (train_labels == train_labels[0]).all():  # sklearn rejects a single class
        return float((test_labels == train_labels[0]).double().mean())
    train, test = train_codes.flatten(1).cpu().double(), test_codes.flatten(1).cpu().double()
    mean, deviation = train.mean(0), train.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1)  # a constant feature stays constant
    probe = LogisticRegression(max_iter=MAX_PROBE_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe.fit(((train - mean) / deviation).numpy(force=True), train_labels.numpy(force=True))
    return float(probe.score(((test - mean) / deviation).numpy(force=True), test_labels.numpy(force=True)))
