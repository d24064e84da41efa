"""How much a latent code says of the labels: two axes that all techniques share."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

BLOCK_ROWS = 1000  # test codes whose distances to all training codes are in memory at once
MAX_PROBE_ITERATIONS = 200


def knn_accuracy(
    train_codes: Tensor, train_labels: Tensor, test_codes: Tensor, test_labels: Tensor, neighbors: int = 10
) -> float:
    """Return the share of test codes that most of their nearest training codes label rightly, in [0, 1].

    Codes are (samples, features), labels (samples,). Distances are Euclidean in the codes as they are; a tied
    vote goes to the smaller label. With fewer training codes than `neighbors`, all vote.
    """
    references = train_codes.flatten(1).float()
    neighbors = min(neighbors, len(references))
    classes = int(torch.maximum(train_labels.max(), test_labels.max())) + 1
    correct = 0
    for codes, truth in zip(
        test_codes.flatten(1).float().split(BLOCK_ROWS), test_labels.split(BLOCK_ROWS), strict=True
    ):
        nearest = torch.cdist(codes, references).topk(neighbors, largest=False).indices  # (block, neighbors)
        voters = train_labels[nearest]
        votes = torch.zeros(len(codes), classes, device=codes.device)
        votes.scatter_add_(1, voters, torch.ones_like(voters, dtype=votes.dtype))
        correct += int((votes.argmax(1) == truth).sum())
    return correct / len(test_labels)


def linear_probe_accuracy(
    train_codes: Tensor, train_labels: Tensor, test_codes: Tensor, test_labels: Tensor
) -> float:
    """Return the test accuracy, in [0, 1], of a logistic regression on the codes: (samples, features), (samples,).

    Codes are standardized by the training codes. At most 200 L-BFGS iterations: a probe that has not converged
    by then is judged as it is.
    """
    from sklearn.linear_model import LogisticRegression

    if (train_labels == train_labels[0]).all():  # one class leaves nothing to learn, and sklearn refuses it
        return float((test_labels == train_labels[0]).double().mean())
    train, test = train_codes.flatten(1).cpu().double(), test_codes.flatten(1).cpu().double()
    mean, deviation = train.mean(0), train.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1)  # a constant feature stays constant
    probe = LogisticRegression(max_iter=MAX_PROBE_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe.fit(((train - mean) / deviation).numpy(force=True), train_labels.numpy(force=True))
    return float(probe.score(((test - mean) / deviation).numpy(force=True), test_labels.numpy(force=True)))
