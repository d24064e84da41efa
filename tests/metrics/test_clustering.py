"""Clustering accuracy, NMI and ARI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from genexp.metrics.clustering import clustering_accuracy, clustering_scores


def test_scores_do_not_depend_on_how_clusters_are_numbered() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    clusters = torch.tensor([7, 7, -1, -1, 3, 3])
    assert clustering_scores(labels, clusters) == pytest.approx({"acc": 1, "nmi": 1, "ari": 1})


def test_accuracy_uses_one_to_one_matching_instead_of_majority() -> None:
    labels = [0] * 6 + [1] * 2
    clusters = [0, 0, 0, 1, 1, 1, 1, 1]
    assert clustering_accuracy(labels, clusters) == pytest.approx(5 / 8)


def test_more_clusters_than_labels_leave_some_unmatched() -> None:
    assert clustering_accuracy([0, 0, 0, 0, 1, 1], [0, 0, 1, 2, 3, 3]) == pytest.approx(4 / 6)


def test_fewer_clusters_than_labels_leave_some_unmatched() -> None:
    assert clustering_accuracy([0, 0, 1, 1, 2, 3], [0, 0, 0, 0, 1, 1]) == pytest.approx(3 / 6)


def test_a_cluster_for_every_sample_and_a_single_cluster_are_scored_without_warnings() -> None:
    labels = torch.arange(100) % 10
    assert clustering_scores(labels, torch.arange(100))["ari"] == pytest.approx(0, abs=1e-9)
    assert clustering_scores(labels, torch.zeros(100, dtype=torch.long)) == pytest.approx(
        {"acc": 0.1, "nmi": 0, "ari": 0}
    )


def test_random_clusters_score_near_zero() -> None:
    torch.manual_seed(0)
    scores = clustering_scores(torch.randint(10, (5000,)), torch.randint(10, (5000,)))
    assert abs(scores["ari"]) < 0.01
    assert scores["nmi"] < 0.01
    assert 0.1 < scores["acc"] < 0.15


@pytest.mark.parametrize(("groups", "clusters", "noise"), [(10, 10, 0.2), (3, 17, 0.5), (12, 2, 0.0), (1, 1, 0.0)])
def test_scores_equal_those_of_scikit_learn(groups: int, clusters: int, noise: float) -> None:
    generator = np.random.default_rng(groups)
    labels = generator.integers(groups, size=700)
    predicted = np.where(generator.random(700) < noise, generator.integers(clusters, size=700), labels % clusters)
    scores = clustering_scores(labels, predicted)
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(labels, predicted), abs=1e-12)
    assert scores["ari"] == pytest.approx(adjusted_rand_score(labels, predicted), abs=1e-12)
