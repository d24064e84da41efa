"""Relocation of empty clusters to the points farthest from their centers, as in scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.kmeans.blocks import Blocks, take
from genexp.kmeans.cluster_sums import ClusterSums
from genexp.kmeans.distances import CenterScorer


def relocate_empty_clusters(cluster_sums: ClusterSums, centers: Tensor, blocks: Blocks) -> ClusterSums:
    """Return cluster sums in which each empty cluster has one of the points farthest from their centers.

    `centers` is (starts, clusters, features). The point is removed from its old cluster, as in scikit-learn. The
    function takes two passes over the blocks, or none if no cluster is empty. The tensors of `cluster_sums` are
    not changed.
    """
    if cluster_sums.has_no_empty_clusters:
        return cluster_sums
    is_empty = cluster_sums.counts == 0
    max_empty = int(is_empty.sum(1).max())
    indices, is_found = _find_farthest_points(blocks, centers, max_empty)  # (starts, max_empty) each
    points = take(blocks, indices.flatten().cpu()).unflatten(0, indices.shape)
    # The empty clusters of each start come first.
    empty_clusters = is_empty.byte().argsort(dim=1, descending=True, stable=True)[:, :max_empty]
    # A start may have fewer empty clusters than `max_empty`, and a small batch may have fewer points.
    is_relocated = is_found & is_empty.gather(1, empty_clusters)
    start_indices, column = is_relocated.nonzero(as_tuple=True)
    point_index, new_cluster, point = (
        indices[start_indices, column],
        empty_clusters[start_indices, column],
        points[start_indices, column].to(cluster_sums.sums),
    )
    old_cluster = cluster_sums.labels[start_indices, point_index].long()
    sums, counts, labels = cluster_sums.sums.clone(), cluster_sums.counts.clone(), cluster_sums.labels.clone()
    sums.index_put_((start_indices, old_cluster), -point, accumulate=True)
    counts.index_put_((start_indices, old_cluster), -torch.ones_like(old_cluster), accumulate=True)
    sums[start_indices, new_cluster], counts[start_indices, new_cluster] = point, 1
    labels[start_indices, point_index] = new_cluster.to(labels)
    return ClusterSums(sums, counts, labels)


def _find_farthest_points(blocks: Blocks, centers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the `count` points farthest from their nearest centers: int64 (starts, count).

    Also returns which of them exist, bool (starts, count): there may be fewer points.
    """
    center_scores = CenterScorer(centers)
    farthest = centers.new_full((len(centers), count), -torch.inf)
    indices = torch.zeros_like(farthest, dtype=torch.long)
    first = 0
    for block in blocks:
        # (points, starts): half of the squared distances
        half_squared_distances = center_scores(block).amin(2) + block.square().sum(1, keepdim=True) / 2
        block_indices = torch.arange(first, first + len(block), device=block.device).expand(len(centers), -1)
        top = torch.cat([farthest, half_squared_distances.T], 1).topk(count)
        farthest = top.values
        indices = torch.cat([indices, block_indices], 1).gather(1, top.indices)
        first += len(block)
    return indices, farthest.isfinite()
