"""Agreement of clusters with class labels: accuracy, normalized mutual information, adjusted Rand index."""

from __future__ import annotations

import warnings
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
    from scipy.optimize import linear_sum_assignment

    label_codes, cluster_codes = _encode_labels(labels), _encode_labels(clusters)
    shape = int(label_codes.max()) + 1, int(cluster_codes.max()) + 1
    flat_codes = label_codes * shape[1] + cluster_codes
    counts = np.bincount(flat_codes, minlength=shape[0] * shape[1]).reshape(shape)  # (labels, clusters)
    matching = linear_sum_assignment(counts, maximize=True)
    return float(counts[matching].sum() / len(label_codes))


def clustering_scores(labels: IntegerLabels, clusters: IntegerLabels) -> dict[str, float]:
    """Return "acc" (see `clustering_accuracy`), "nmi" (normalized by the arithmetic mean) and "ari".

    acc and nmi lie in [0, 1]. ari is 1 for equal partitions and 0 on average for random ones. It may be negative.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    label_codes, cluster_codes = _encode_labels(labels), _encode_labels(clusters)
    with warnings.catch_warnings():
        # With many small clusters, sklearn warns of a regression target.
        warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
        return {
            "acc": clustering_accuracy(label_codes, cluster_codes),
            "nmi": float(normalized_mutual_info_score(label_codes, cluster_codes)),
            "ari": float(adjusted_rand_score(label_codes, cluster_codes)),
        }


def _encode_labels(labels: IntegerLabels) -> NDArray[np.int64]:
    """Return `labels` with its values renumbered from 0 without gaps: int64 (samples,)."""
    values = labels.numpy(force=True) if isinstance(labels, Tensor) else np.asarray(labels)
    return np.unique(values, return_inverse=True)[1].reshape(-1)
