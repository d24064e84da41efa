"""Accuracy of labels predicted from latent codes by nearest neighbors and by a linear probe."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_PROBE_ITERATIONS = 200


def knn_accuracy(
    train_codes: Tensor, train_labels: Tensor, test_codes: Tensor, test_labels: Tensor, neighbors: int = 10
) -> float:
    """Return the accuracy, in [0, 1], of a majority vote of the `neighbors` nearest training codes.

    Codes are (samples, features), labels (samples,). Distances are Euclidean, without standardization. A tied
    vote goes to the smaller label. If there are fewer training codes than `neighbors`, all of them vote.
    """
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(min(neighbors, len(train_codes)))
    classifier.fit(_flatten(train_codes), train_labels.numpy(force=True))
    return float(classifier.score(_flatten(test_codes), test_labels.numpy(force=True)))


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


def _flatten(codes: Tensor) -> NDArray[np.float32]:
    """Return codes (samples, ...) as an array (samples, features)."""
    array: NDArray[np.float32] = codes.flatten(1).float().numpy(force=True)
    return array
