"""Agreement of clusters with class labels: accuracy, normalized mutual information, adjusted Rand index.

All three are computed from the table of counts. scikit-learn and SciPy have them too, but their imports take
0.9 s: as long as a whole k-means fit of 60,000 images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

CLUSTERING_SCORES = ("acc", "nmi", "ari")  # keys of the result of `clustering_scores`
IntegerLabels = Tensor | NDArray[np.int64] | Sequence[int]  # (samples,): any integers; equal values are one group
Counts = NDArray[np.int64]  # (labels, clusters): number of samples


def clustering_accuracy(labels: IntegerLabels, clusters: IntegerLabels) -> float:
    """Return the fraction of correct samples under the best one-to-one matching of clusters to labels.

    The Hungarian algorithm finds the matching (Yang et al. 2010). If there are more clusters than labels, samples
    of unmatched clusters count as errors. If there are fewer, samples of unmatched labels count as
    errors.
    """
    return _compute_accuracy(_count_pairs(labels, clusters))


def clustering_scores(labels: IntegerLabels, clusters: IntegerLabels) -> dict[str, float]:
    """Return "acc" (see `clustering_accuracy`), "nmi" (normalized by the arithmetic mean) and "ari".

    acc and nmi lie in [0, 1]. ari is 0 for chance and 1 for agreement, and may be negative.
    """
    counts = _count_pairs(labels, clusters)
    return {
        "acc": _compute_accuracy(counts),
        "nmi": _compute_mutual_information(counts),
        "ari": _compute_rand_index(counts),
    }


def _count_pairs(labels: IntegerLabels, clusters: IntegerLabels) -> Counts:
    label_codes, cluster_codes = _encode_labels(labels), _encode_labels(clusters)
    shape = int(label_codes.max()) + 1, int(cluster_codes.max()) + 1
    flat_codes = label_codes * shape[1] + cluster_codes
    return np.bincount(flat_codes, minlength=shape[0] * shape[1]).reshape(shape)


def _encode_labels(labels: IntegerLabels) -> NDArray[np.int64]:
    """Return `labels` with its values renumbered from 0 without gaps: int64 (samples,)."""
    values = labels.numpy(force=True) if isinstance(labels, Tensor) else np.asarray(labels)
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def _compute_accuracy(counts: Counts) -> float:
    table = counts if counts.shape[0] <= counts.shape[1] else counts.T
    return float(table[np.arange(len(table)), match_maximum(table)].sum() / table.sum())


def match_maximum(weights: Counts) -> NDArray[np.int64]:
    """Return the column of each row in the matching with the largest sum: (rows, columns ≥ rows) → int64 (rows,).

    Hungarian algorithm with shortest augmenting paths (Jonker & Volgenant 1987): rows are matched one by one.
    """
    rows, columns = weights.shape
    costs = weights.max(initial=0) - weights
    row_potentials, column_potentials = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    row_of = np.full(columns, -1)
    infinity = np.iinfo(np.int64).max
    for new_row in range(rows):
        distances, previous = np.full(columns, infinity), np.full(columns, -1)
        is_visited = np.zeros(columns, bool)
        row, column, distance = new_row, -1, 0
        while True:
            reduced = distance + costs[row] - row_potentials[row] - column_potentials
            is_shorter = ~is_visited & (reduced < distances)
            distances[is_shorter], previous[is_shorter] = reduced[is_shorter], column
            column = int(np.where(is_visited, infinity, distances).argmin())
            distance = distances[column]
            if row_of[column] < 0:
                break
            is_visited[column] = True
            row = row_of[column]
        slack = distance - distances[is_visited]
        row_potentials[row_of[is_visited]] += slack
        column_potentials[is_visited] -= slack
        row_potentials[new_row] += distance
        while column >= 0:  # along the path from the free column back to the new row
            source = previous[column]
            row_of[column] = row_of[source] if source >= 0 else new_row
            column = int(source)
    matched = np.flatnonzero(row_of >= 0)
    result = np.empty(rows, np.int64)
    result[row_of[matched]] = matched
    return result


def _compute_mutual_information(counts: Counts) -> float:
    """Return the mutual information divided by the mean of both entropies (Strehl & Ghosh 2002)."""
    joint = counts / counts.sum()
    marginals = joint.sum(1), joint.sum(0)
    entropies = [-float((part * np.log(part)).sum()) for part in marginals]
    mean_entropy = sum(entropies) / 2
    if mean_entropy == 0:  # one label and one cluster: they agree
        return 1.0
    is_counted = joint > 0
    expected = np.outer(*marginals)[is_counted]
    information = float((joint[is_counted] * np.log(joint[is_counted] / expected)).sum())
    return min(1.0, max(0.0, information / mean_entropy))


def _compute_rand_index(counts: Counts) -> float:
    """Return the Rand index adjusted for chance (Hubert & Arabie 1985)."""
    pairs = _count_within(counts)
    label_pairs, cluster_pairs = _count_within(counts.sum(1)), _count_within(counts.sum(0))
    all_pairs = _count_within(counts.sum())
    expected = label_pairs * cluster_pairs / all_pairs if all_pairs else 0.0
    largest = (label_pairs + cluster_pairs) / 2
    return 1.0 if largest == expected else (pairs - expected) / (largest - expected)


def _count_within(counts: NDArray[np.int64]) -> float:
    """Return the number of pairs of samples within the groups of these sizes."""
    return float((counts.astype(np.float64) * (counts - 1) / 2).sum())
