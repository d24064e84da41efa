"""Lloyd's algorithm for several starts at once (Lloyd 1982).

Centers are (starts, clusters, features) throughout: the starts differ in their centers and share the points. The
assignment steps are in `genexp.kmeans.hamerly_bounds` and `genexp.kmeans.projection_bounds`. All of them find the
same nearest centers, but differ in computing time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genexp.kmeans.blocks import Blocks, iterate_local_rows
from genexp.kmeans.cluster_sums import ClusterSums, ClusterSumsUpdate
from genexp.kmeans.empty_clusters import relocate_empty_clusters
from genexp.kmeans.hamerly_bounds import ExhaustiveAssignment, HamerlyBounds
from genexp.kmeans.projection_bounds import ProjectionBounds


def fit(blocks: Blocks, num_points: int, centers: Tensor, max_iter: int) -> tuple[Tensor, Tensor]:
    """Run at most `max_iter` iterations from `centers`; stop once no center moves.

    Returns the centers (clusters, features) of the start with the lowest inertia, and its labels (points,).
    """
    assignment = choose_assignment(blocks, centers, num_points)
    cluster_sums = assign(blocks, centers, num_points, assignment)
    for _ in range(max_iter):
        old_centers = centers
        centers, cluster_sums = lloyd_step(blocks, old_centers, cluster_sums, assignment)
        if torch.equal(centers, old_centers):
            break
    best = cluster_sums.inertia_without_norms(centers).argmin()
    return centers[best], cluster_sums.labels[best]


def lloyd_step(
    blocks: Blocks, centers: Tensor, cluster_sums: ClusterSums, assignment: ExhaustiveAssignment | None = None
) -> tuple[Tensor, ClusterSums]:
    """Move `centers` to the means of their clusters, and assign all points to the new centers.

    `centers` is (starts, clusters, features). `cluster_sums` belongs to it, and its tensors may change in place.
    Empty clusters are relocated first. Returns the new centers and their cluster sums.
    """
    assignment = assignment or ExhaustiveAssignment()
    cluster_sums = relocate_empty_clusters(cluster_sums, centers, blocks)
    means = cluster_sums.means(fallback=centers)
    return means, _assign_all(blocks, means, cluster_sums, assignment)


def assign(
    blocks: Blocks, centers: Tensor, num_points: int, assignment: ExhaustiveAssignment | None = None
) -> ClusterSums:
    """Return the cluster sums of the first pass, which assigns each point to its nearest center.

    `blocks` contains `num_points` points. `centers` is (starts, clusters, features).
    """
    unassigned = ClusterSums.create_unassigned(centers, num_points)
    return _assign_all(blocks, centers, unassigned, assignment or ExhaustiveAssignment())


def _assign_all(
    blocks: Blocks, centers: Tensor, previous: ClusterSums, assignment: ExhaustiveAssignment
) -> ClusterSums:
    """Return the cluster sums of `centers`, made by changing `previous` in place."""
    assignment.move_centers(centers, previous.labels)
    update = ClusterSumsUpdate(previous)
    for block, index in iterate_local_rows(blocks):
        update.move(block, index, assignment.find_nearest(block, index.start, previous.labels[:, index]))
    return update.finish()


def choose_assignment(blocks: Blocks, centers: Tensor, num_points: int) -> ExhaustiveAssignment:
    """Return the fastest assignment step for several iterations over `num_points` points.

    `centers` (starts, clusters, features) are those of the first pass, which has not started.
    """
    if centers.device.type != "cpu":  # a GPU compares with all centers faster than it selects some
        return ExhaustiveAssignment()
    if ProjectionBounds.is_worthwhile(centers, num_points):
        return ProjectionBounds(blocks, centers, num_points)
    return HamerlyBounds(centers, num_points)
