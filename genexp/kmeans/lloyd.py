"""Lloyd's algorithm for several starts at once (Lloyd 1982).

Centers are (starts, clusters, features) throughout: the starts differ in their centers and share the points.
Only points that change cluster update the sums. After the first iterations, bounds skip the points that provably
stay in their cluster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.kmeans.blocks import Blocks, take
from genexp.kmeans.cluster_sums import ClusterSums, ClusterSumsUpdater
from genexp.kmeans.distances import CenterScorer
from genexp.kmeans.exhaustive_assignment import ExhaustiveAssignment
from genexp.kmeans.projection_bounds import ProjectionBounds
from genexp.kmeans.pruned_assignment import PrunedAssignment
from genexp.kmeans.small_problem import assign_small, fit_small, is_small_problem
from genexp.sharding import current_shard


def assign(blocks: Blocks, centers: Tensor, num_points: int) -> ClusterSums:
    """Assign each of the `num_points` points in `blocks` to its nearest center."""
    if is_small_problem(centers, num_points):
        return assign_small(blocks, centers, None)
    return _update_assignment(blocks, centers, ClusterSums.create_unassigned(centers, num_points), None)


def lloyd_step(blocks: Blocks, centers: Tensor, cluster_sums: ClusterSums) -> tuple[Tensor, ClusterSums]:
    """Move `centers` to the means of their clusters, and assign all points to the new centers.

    `cluster_sums` belongs to `centers`, and its tensors may change in place. Empty clusters are relocated first.
    Returns the new centers and their cluster sums.
    """
    relocated = relocate_empty_clusters(cluster_sums, centers, blocks)
    means = relocated.means(centers)
    is_small = is_small_problem(centers, relocated.labels.shape[1])
    return means, assign_small(blocks, means, relocated) if is_small else _update_assignment(
        blocks, means, relocated, centers
    )


def fit(blocks: Blocks, num_points: int, centers: Tensor, max_iter: int) -> tuple[Tensor, Tensor]:
    """Run at most `max_iter` iterations; stop once no center moves.

    Returns the centers (clusters, features) of the start with the lowest inertia, and its labels (points,).
    """
    if is_small_problem(centers, num_points):
        centers, cluster_sums, max_iter = fit_small(blocks, centers, max_iter)
    else:
        cluster_sums = assign(blocks, centers, num_points)
    for _ in range(max_iter):
        old_centers = centers
        centers, cluster_sums = lloyd_step(blocks, old_centers, cluster_sums)
        if torch.equal(centers, old_centers):
            break
    best = cluster_sums.inertia_without_norms(centers).argmin() if len(centers) > 1 else 0
    return centers[best], cluster_sums.labels[best]


def _update_assignment(
    blocks: Blocks, centers: Tensor, previous: ClusterSums, old_centers: Tensor | None
) -> ClusterSums:
    """Return the cluster sums of `centers`, made by changing `previous` in place.

    `previous` belongs to `old_centers`, or is unassigned where these are None.
    """
    update = ClusterSumsUpdater(previous, centers)
    assignment: ExhaustiveAssignment | PrunedAssignment
    if old_centers is not None and ProjectionBounds.is_worthwhile(centers, update.labels.shape[1]):
        assignment = PrunedAssignment(centers, previous, old_centers, update, blocks)
    else:
        assignment = ExhaustiveAssignment(centers, previous, old_centers, update)
    first, slices = 0, []
    for block in blocks:
        rows = current_shard().row_slice(len(block))  # the other shards assign the other rows
        slices.append(slice(first + rows.start, first + rows.stop))
        assignment.assign_block(block[rows], slices[-1])
        first += len(block)
    assignment.finish()
    return update.build_cluster_sums(slices, assignment.bounds)


def relocate_empty_clusters(cluster_sums: ClusterSums, centers: Tensor, blocks: Blocks) -> ClusterSums:
    """Return cluster sums in which each empty cluster has one of the points farthest from their centers.

    The point leaves its old cluster. This is the rule of scikit-learn. It takes two passes over the blocks, or
    none if no cluster is empty. The tensors are copied, but the bounds change in place.
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
    if cluster_sums.bounds is not None:
        cluster_sums.bounds.invalidate(start_indices, point_index)
    return ClusterSums(sums, counts, labels, cluster_sums.changed_fraction, cluster_sums.bounds)


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
