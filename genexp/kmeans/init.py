"""Where k-means begins: initial centers (starts, clusters, features) for several starts at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.kmeans.blocks import CHUNK_ELEMENTS, Blocks, get_chunk_rows, take


def random_points(blocks: Blocks, count: int, starts: int, clusters: int) -> Tensor:
    """Return different points of `count` for the clusters of each start."""
    indices = torch.cat([torch.randperm(count)[:clusters] for _ in range(starts)])
    return take(blocks, indices).unflatten(0, (starts, clusters))


def kmeans_plusplus(blocks: Blocks, count: int, starts: int, clusters: int) -> Tensor:
    """Return centers by greedy k-means++ (Arthur & Vassilvitskii 2007), as scikit-learn draws them.

    Each next center is the best of 2 + log(clusters) candidates, which are drawn in proportion to the squared
    distance to the centers so far. One pass a center: while the candidates are compared, those of the next
    center are drawn already, for each way in which the comparison can end.
    """
    n_local_trials = 2 + int(math.log(clusters))
    new_centers = take(blocks, torch.randint(count, (starts,)))
    candidates = new_centers.unsqueeze(1)  # (starts, candidates, features)
    state = _PlusPlusState(
        closest_dist_sq=new_centers.new_full((starts, count), torch.inf),
        squared_norms=torch.cat([torch.linalg.vector_norm(block, dim=1).square_() for block in blocks]),
    )
    rows = torch.arange(starts, device=new_centers.device)
    centers = []
    for _ in range(clusters):
        potential, next_candidates = _evaluate_candidates(blocks, state, new_centers, candidates, n_local_trials)
        best = potential.argmin(1)
        new_centers, candidates = candidates[rows, best], next_candidates[rows, best]
        centers.append(new_centers)
    return torch.stack(centers, 1)


@dataclass(frozen=True)
class _PlusPlusState:
    """What is known of each point."""

    closest_dist_sq: Tensor  # (starts, count) squared distance to the nearest of the centers so far
    squared_norms: Tensor  # (count,) squared norm


def _evaluate_candidates(
    blocks: Blocks, state: _PlusPlusState, new_centers: Tensor, candidates: Tensor, n_local_trials: int
) -> tuple[Tensor, Tensor]:
    """Add the centers `chosen` (starts, features) to what is `seen`, and compare candidates for the next ones.

    Returns the inertia (starts, candidates) that each candidate would leave, and the points
    (starts, candidates, draws, features) that would be the candidates after it.
    """
    centers_and_candidates = torch.cat(
        [new_centers.unsqueeze(1), candidates], 1
    )  # (starts, 1 + candidates, features)
    rows = centers_and_candidates.flatten(0, 1)
    potential = candidates.new_zeros(candidates.shape[:2])
    next_candidates = candidates.unsqueeze(2).repeat(
        1, 1, n_local_trials, 1
    )  # stays where all points are duplicates
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
    """Return the squared distances (rows, points) of `rows` to `points`, whose squared `norms` are known."""
    dist_sq, row_squared_norms = points.new_empty(len(rows), len(points)), rows.square().sum(1, keepdim=True)
    chunk_rows = get_chunk_rows(CHUNK_ELEMENTS, points.shape[1], points)
    for chunk, chunk_squared_norms, out in zip(
        points.split(chunk_rows), squared_norms.split(chunk_rows), dist_sq.split(chunk_rows, 1), strict=True
    ):
        torch.addmm(row_squared_norms + chunk_squared_norms, rows, chunk.T, alpha=-2, out=out)
    return dist_sq.clamp_(min=0)


def _update_reservoir(block: Tensor, cumulative_mass: Tensor, previous_mass: Tensor, reservoir: Tensor) -> Tensor:
    """Let points of `block` take the places of points `drawn` from the blocks before it.

    At the end each place holds an independent draw from all points, in proportion to their mass. `mass`
    (starts, candidates, points) is cumulative; returns its total, to which `before` is that of the blocks before.
    """
    total = cumulative_mass[..., -1]
    thresholds = torch.rand(*reservoir.shape[:3], device=block.device) * total.unsqueeze(2)
    positions = torch.searchsorted(cumulative_mass, thresholds, right=True).clamp(max=len(block) - 1)
    is_replaced = torch.rand(positions.shape, device=block.device) * (previous_mass + total).unsqueeze(
        2
    ) < total.unsqueeze(2)
    reservoir[is_replaced] = block[positions[is_replaced]]
    return total
