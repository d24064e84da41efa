"""Nearest centres of few points, all in one product: a short call of numpy takes a fraction of one of torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genexp.clustering.blocks import Blocks
from genexp.clustering.totals import Totals
from genexp.whole_batch import ALL, here

SCORES = 2**13  # distances: so many at most
FEATURES = 2**14  # of points


def are_few(centres: Tensor, count: int) -> bool:
    """Return whether there is so little to compute that the calls themselves take the time."""
    starts, clusters, features = centres.shape
    small = count * starts * clusters <= SCORES and count * features <= FEATURES
    return small and centres.device.type == "cpu" and here() == ALL


def tally_few(blocks: Blocks, centres: Tensor) -> Totals:
    """Assign each point to its nearest centre."""
    arrays = [block.numpy() for block in blocks]
    points = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    starts, clusters, features = centres.shape
    rows = centres.numpy().reshape(-1, features)
    scores = np.einsum("rf,rf->r", rows, rows / 2) - points @ rows.T  # halved squares less the points' own
    labels = scores.reshape(-1, starts, clusters).argmin(2).T
    members = (labels[:, None] == np.arange(clusters)[:, None]).astype(np.float64)  # (starts, clusters, points)
    sums, counts = members @ points, members.sum(2)
    return Totals(
        torch.from_numpy(sums),
        torch.from_numpy(counts.astype(np.int64)),
        torch.from_numpy(labels.astype(np.int32)),
    )
