"""Clustering of codes by their nearest neighbors: a classifier trained without labels, and label propagation.

Sources: SCAN (Van Gansbeke et al. 2020); learning with local and global consistency (Zhou et al. 2004).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN_UNITS = 64
ENTROPY_WEIGHT = 2.0  # of the entropy of the cluster sizes, which keeps clusters from merging
FIT_STEPS, FIT_BATCH_SIZE, FIT_LR = 400, 512, 1e-2
LABEL_STEPS = 1000  # of `NeighborClassifier.fit_clusters`
PROPAGATION_STEPS, PROPAGATION_WEIGHT = 100, 0.9  # iterations; weight of the neighbors against the row itself
NEIGHBOR_QUERIES = 1000  # rows of the distance matrix that are in memory at once

Weights = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # hidden weight and bias, output weight and bias; one for each start


class NeighborClassifier(nn.Module):
    """Network with one hidden layer, from latent codes (batch, latent) to cluster probabilities (batch, clusters).

    The weights are buffers: only `fit` and `fit_clusters` change them.
    """

    def __init__(self, latent: int, clusters: int) -> None:
        super().__init__()
        shapes = [(latent, HIDDEN_UNITS), (1, HIDDEN_UNITS), (HIDDEN_UNITS, clusters), (1, clusters)]
        self.names = ("hidden_weight", "hidden_bias", "output_weight", "output_bias")
        for name, shape in zip(self.names, shapes, strict=True):
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, codes: Tensor) -> Tensor:
        """Return `classify(codes, self.weights)`, in its shape."""
        return classify(codes, self.weights)

    @property
    def weights(self) -> Weights:
        """The four weight tensors."""
        hidden_weight, hidden_bias, output_weight, output_bias = (self.get_buffer(name) for name in self.names)
        return hidden_weight, hidden_bias, output_weight, output_bias

    def fit(self, codes: Tensor, neighbors: Tensor, num_starts: int, view_codes: Sequence[Tensor] = ()) -> None:
        """Train `num_starts` classifiers on `codes` (rows, latent) and keep the one with the lowest loss.

        `neighbors` is int64 (rows, neighbors), the result of `find_neighbors(codes, …)`. `view_codes` are codes of
        random views of the same images, in the same shape: the classifiers are then trained on views of an image
        and of its neighbor, instead of the images.

        The classifiers are slices of stacked tensors, and are trained together. The loss needs no labels. In
        contrast to the inertia of k-means, a lower loss indicates a higher accuracy (README.md of this folder).
        """
        views = torch.stack(list(view_codes) or [codes])
        batch_size = min(FIT_BATCH_SIZE, len(codes))
        weights = self._draw_weights(num_starts, codes.device)
        with torch.enable_grad():
            optimizer = torch.optim.Adam(weights, FIT_LR)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
            for _ in range(FIT_STEPS):
                rows = torch.randint(len(codes), (batch_size,), device=codes.device)
                column = torch.randint(neighbors.shape[1], (batch_size,), device=codes.device)
                view, other_view = torch.randint(len(views), (2, batch_size), device=codes.device)
                inputs = torch.cat([views[view, rows], views[other_view, neighbors[rows, column]]])
                pairs = classify(inputs, weights)
                optimizer.zero_grad()
                neighbor_loss(*pairs.chunk(2, dim=1)).sum().backward()
                optimizer.step()
                schedule.step()
        probabilities = classify(codes, weights)
        losses = sum(
            neighbor_loss(probabilities, other[:, column])
            for other in (classify(view, weights) for view in views)
            for column in neighbors.T
        )
        best = int(torch.as_tensor(losses).argmin())
        for buffer, weight in zip(self.weights, weights, strict=True):
            buffer.copy_(weight[best].detach())

    def fit_clusters(self, codes: Tensor, clusters: Tensor) -> None:
        """Train the classifier further, to predict given clusters, int64 (rows,), from `codes` (rows, latent)."""
        weights = [weight.detach().clone().requires_grad_() for weight in self.weights]
        hidden_weight, hidden_bias, output_weight, output_bias = weights
        with torch.enable_grad():
            optimizer = torch.optim.Adam(weights, FIT_LR)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, LABEL_STEPS)
            for _ in range(LABEL_STEPS):
                rows = torch.randint(len(codes), (min(FIT_BATCH_SIZE, len(codes)),), device=codes.device)
                logits = (codes[rows] @ hidden_weight + hidden_bias).relu() @ output_weight + output_bias
                optimizer.zero_grad()
                F.cross_entropy(logits, clusters[rows]).backward()
                optimizer.step()
                schedule.step()
        for buffer, weight in zip(self.weights, weights, strict=True):
            buffer.copy_(weight.detach())

    def _draw_weights(self, num_starts: int, device: torch.device) -> Weights:
        """Return initial weights of He et al. (2015), with a leading axis for the starts, and biases of 0."""
        hidden, output = (
            (torch.randn(num_starts, *weight.shape, device=device) * (2 / weight.shape[0]) ** 0.5).requires_grad_()
            for weight in (self.weights[0], self.weights[2])
        )
        hidden_bias, output_bias = (
            torch.zeros(num_starts, *bias.shape, device=device).requires_grad_()
            for bias in (self.weights[1], self.weights[3])
        )
        return hidden, hidden_bias, output, output_bias


def classify(codes: Tensor, weights: Weights) -> Tensor:
    """Return cluster probabilities (..., rows, clusters) of `codes` (rows, latent)."""
    hidden_weight, hidden_bias, output_weight, output_bias = weights
    return ((codes @ hidden_weight + hidden_bias).relu() @ output_weight + output_bias).softmax(-1)


def neighbor_loss(probabilities: Tensor, neighbor_probabilities: Tensor) -> Tensor:
    """Return -log(probability that a pair has the same class) - weight · entropy of the mean (SCAN, eq. 2).

    Both arguments are (starts, rows, clusters), the result is (starts,).
    """
    agreement = (probabilities * neighbor_probabilities).sum(-1)
    shares = probabilities.mean(1)
    entropy = -(shares * shares.clamp_min(1e-8).log()).sum(-1)
    return -agreement.clamp_min(1e-8).log().mean(1) - ENTROPY_WEIGHT * entropy


def propagate(probabilities: Tensor, neighbors: Tensor) -> Tensor:
    """Return cluster probabilities (rows, clusters) that agree with those of the neighbors of each row.

    `probabilities` is (rows, clusters), `neighbors` int64 (rows, neighbors). The result is approximately the fixed
    point of F = w · mean of F over the neighbors + (1 - w) · `probabilities` (label propagation, Zhou et al. 2004,
    with the weight 1 for each neighbor). A small group of rows thus takes the cluster of the rows around it.
    """
    propagated = probabilities
    for _ in range(PROPAGATION_STEPS):
        neighbor_means = propagated[neighbors].mean(1)
        propagated = PROPAGATION_WEIGHT * neighbor_means + (1 - PROPAGATION_WEIGHT) * probabilities
    return propagated


def find_neighbors(codes: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` nearest other rows of each row of `codes`: int64 (rows, count)."""
    found = []
    for first, queries in enumerate(codes.split(NEIGHBOR_QUERIES)):
        distances = torch.cdist(queries, codes)
        rows = torch.arange(len(queries), device=codes.device)
        distances[rows, first * NEIGHBOR_QUERIES + rows] = torch.inf
        found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found)
