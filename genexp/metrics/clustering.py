"""Agreement of clusters with class labels: accuracy, normalized mutual information, adjusted Rand index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

CLUSTERING_SCORES = ("acc", "nmi", "ari")  # keys of the result of `clustering_scores`
IntegerLabels = Tensor | NDArray[np.int64] | Sequence[int]  # (samples,): any integers; equal values form one group


def clustering_accuracy(labels: IntegerLabels, clusters: IntegerLabels) -> float:
    """Return the fraction of correct samples under the best one-to-one matching of clusters to labels.

    The Hungarian algorithm finds the matching (Yang et al. 2010). If there are more clusters than labels, samples
    of unmatched clusters count as errors. If there are fewer, samples of unmatched labels count as
    errors.
    """
    return _compute_accuracy(_build_contingency_table(labels, clusters))


def clustering_scores(labels: IntegerLabels, clusters: IntegerLabels) -> dict[str, float]:
    """Return "acc" (see `clustering_accuracy`), "nmi" (normalized by the arithmetic mean) and "ari".

    acc and nmi lie in [0, 1]. ari is 1 for equal partitions and 0 on average for random ones. It may be negative.
    The definitions of nmi and ari are those of scikit-learn, whose import takes longer than the clustering of a
    small data set: see "Libraries" in scripts/README.md.
    """
    counts = _build_contingency_table(labels, clusters)
    return {
        "acc": _compute_accuracy(counts),
        "nmi": _compute_normalized_mutual_information(counts),
        "ari": _compute_adjusted_rand_index(counts),
    }


def _build_contingency_table(labels: IntegerLabels, clusters: IntegerLabels) -> NDArray[np.int64]:
    """Return the number of samples with each label in each cluster: (labels, clusters).

    Each row and each column has at least one sample.
    """
    label_codes, cluster_codes = _encode_labels(labels), _encode_labels(clusters)
    shape = int(label_codes.max()) + 1, int(cluster_codes.max()) + 1
    flat_codes = label_codes * shape[1] + cluster_codes
    return np.bincount(flat_codes, minlength=shape[0] * shape[1]).reshape(shape)


def _compute_accuracy(counts: NDArray[np.int64]) -> float:
    # scipy.optimize has the same algorithm, but takes longer to import.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    # A sparse array has no edge where a value is 0. Adding 1 everywhere does not change which matching is best.
    matching = min_weight_full_bipartite_matching(csr_array(counts + 1), maximize=True)
    return float(counts[matching].sum() / counts.sum())


def _compute_normalized_mutual_information(counts: NDArray[np.int64]) -> float:
    """Return I(labels; clusters) / mean(H(labels), H(clusters)), or 1 if there is one label and one cluster."""
    if min(counts.shape) == 1:
        return float(counts.size == 1)
    joint = counts / counts.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    mean_entropy = -(np.sum(rows * np.log(rows)) + np.sum(columns * np.log(columns))) / 2
    present = joint > 0
    information = np.sum(joint[present] * np.log((joint / np.outer(rows, columns))[present]))
    return float(np.clip(information / mean_entropy, 0, 1))


def _compute_adjusted_rand_index(counts: NDArray[np.int64]) -> float:
    """Return the Rand index adjusted for chance (Hubert and Arabie 1985, equation 5)."""

    def count_pairs(sizes: NDArray[np.int64]) -> int:
        """Return the number of ordered pairs within groups of these sizes. Python's integers do not overflow."""
        return sum(size * (size - 1) for size in sizes.ravel().tolist())

    both, rows, columns = (count_pairs(sizes) for sizes in (counts, counts.sum(1), counts.sum(0)))
    if both == rows == columns:
        return 1.0  # equal partitions, also where the expected index is the largest one
    total = count_pairs(counts.sum(keepdims=True))
    return 2 * (both * total - rows * columns) / ((rows + columns) * total - 2 * rows * columns)


def _encode_labels(labels: IntegerLabels) -> NDArray[np.int64]:
    """Return `labels` with its values renumbered from 0 without gaps: int64 (samples,)."""
    values = labels.numpy(force=True) if isinstance(labels, Tensor) else np.asarray(labels)
    return np.unique(values, return_inverse=True)[1].reshape(-1)
