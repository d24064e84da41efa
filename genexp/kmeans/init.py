"""Initial centers for several starts: greedy k-means++ (Arthur & Vassilvitskii 2007) and random points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.kmeans.blocks import CHUNK_ELEMENTS, Blocks, get_chunk_size, take


def random_points(blocks: Blocks, num_points: int, num_starts: int, num_clusters: int) -> Tensor:
    """Return points drawn without replacement for each start: (starts, clusters, features).

    `num_points` is the number of points in `blocks`.
    """
    indices = torch.cat([torch.randperm(num_points)[:num_clusters] for _ in range(num_starts)])
    return take(blocks, indices).unflatten(0, (num_starts, num_clusters))


def kmeans_plusplus(blocks: Blocks, num_points: int, num_starts: int, num_clusters: int) -> Tensor:
    """Return centers (starts, clusters, features) by greedy k-means++, as in scikit-learn.

    Each center is the best of 2 + ln(clusters) candidates (Arthur & Vassilvitskii 2007). Their probability is
    proportional to the squared distance to the nearest center so far. One pass over the blocks per center
    evaluates the candidates. For each candidate, the same pass draws the next candidates, which are used if this
    candidate is chosen. `num_points` is the number of points in `blocks`.
    """
    n_local_trials = 2 + int(math.log(num_clusters))
    new_centers = take(blocks, torch.randint(num_points, (num_starts,)))
    candidates = new_centers.unsqueeze(1)  # (starts, candidates, features)
    state = _PlusPlusState(
        closest_dist_sq=new_centers.new_full((num_starts, num_points), torch.inf),
        squared_norms=torch.cat([torch.linalg.vector_norm(block, dim=1).square_() for block in blocks]),
    )
    start_indices = torch.arange(num_starts, device=new_centers.device)
    centers = []
    for _ in range(num_clusters):
        potential, next_candidates = _evaluate_candidates(blocks, state, new_centers, candidates, n_local_trials)
        best = potential.argmin(1)
        new_centers, candidates = candidates[start_indices, best], next_candidates[start_indices, best]
        centers.append(new_centers)
    return torch.stack(centers, 1)


@dataclass(frozen=True)
class _PlusPlusState:
    """State of k-means++ for each point."""

    closest_dist_sq: Tensor  # (starts, points): squared distance to the nearest center so far
    squared_norms: Tensor  # (points,)


def _evaluate_candidates(
    blocks: Blocks, state: _PlusPlusState, new_centers: Tensor, candidates: Tensor, n_local_trials: int
) -> tuple[Tensor, Tensor]:
    """Add `new_centers` (starts, features) to `state`, and evaluate `candidates` (starts, candidates, features).

    Returns the potential of each candidate, (starts, candidates): the inertia if it becomes the next center. Also
    returns the candidates to follow it, (starts, candidates, n_local_trials, features).
    """
    # (starts, 1 + candidates, features)
    centers_and_candidates = torch.cat([new_centers.unsqueeze(1), candidates], 1)
    rows = centers_and_candidates.flatten(0, 1)
    potential = candidates.new_zeros(candidates.shape[:2])
    # If all points coincide with centers, no point is drawn, and these initial values remain.
    next_candidates = candidates.unsqueeze(2).repeat(1, 1, n_local_trials, 1)
    first = 0
    for block in blocks:
        index = slice(first, first + len(block))
        first += len(block)
        dist_sq = _squared_distances(rows, block, state.squared_norms[index])
        dist_sq = dist_sq.unflatten(0, centers_and_candidates.shape[:2])  # (starts, 1 + candidates, points)
        state.closest_dist_sq[:, index] = torch.minimum(state.closest_dist_sq[:, index], dist_sq[:, 0])
        candidate_dist_sq = torch.minimum(state.closest_dist_sq[:, None, index], dist_sq[:, 1:])
        potential += _update_reservoir(block, candidate_dist_sq.cumsum(2), potential, next_candidates)
    return potential, next_candidates


def _squared_distances(rows: Tensor, points: Tensor, squared_norms: Tensor) -> Tensor:
    """Return squared distances: (rows, features) and (points, features) → (rows, points).

    `squared_norms` (points,) are those of `points`.
    """
    dist_sq, row_squared_norms = points.new_empty(len(rows), len(points)), rows.square().sum(1, keepdim=True)
    chunk_size = get_chunk_size(CHUNK_ELEMENTS, points.shape[1], points)
    for chunk, chunk_squared_norms, out in zip(
        points.split(chunk_size), squared_norms.split(chunk_size), dist_sq.split(chunk_size, 1), strict=True
    ):
        torch.addmm(row_squared_norms + chunk_squared_norms, rows, chunk.T, alpha=-2, out=out)
    return dist_sq.clamp_(min=0)


def _update_reservoir(
    block: Tensor, cumulative_weights: Tensor, previous_mass: Tensor, reservoir: Tensor
) -> Tensor:
    """Replace entries of `reservoir` by points of `block`, by weighted reservoir sampling.

    After the last block each entry is an independent draw from all points, with probability proportional to its
    weight. `cumulative_weights` (starts, candidates, points) is summed along the points. `previous_mass` (starts,
    candidates) is the total weight of the blocks before. `reservoir` (starts, candidates, draws, features) changes
    in place. Returns the total weight of `block`, (starts, candidates).
    """
    total = cumulative_weights[..., -1]
    thresholds = torch.rand(*reservoir.shape[:3], device=block.device) * total.unsqueeze(2)
    positions = torch.searchsorted(cumulative_weights, thresholds, right=True).clamp(max=len(block) - 1)
    is_replaced = torch.rand(positions.shape, device=block.device) * (previous_mass + total).unsqueeze(
        2
    ) < total.unsqueeze(2)
    reservoir[is_replaced] = block[positions[is_replaced]]
    return total
