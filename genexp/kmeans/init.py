"""Where k-means begins: initial centres (starts, clusters, features) for several starts at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.kmeans.blocks import FEATURES, Blocks, at_once, take


def random_points(blocks: Blocks, count: int, starts: int, clusters: int) -> Tensor:
    """Return different points of `count` for the clusters of each start."""
    indices = torch.cat([torch.randperm(count)[:clusters] for _ in range(starts)])
    return take(blocks, indices).unflatten(0, (starts, clusters))


def greedy_plus_plus(blocks: Blocks, count: int, starts: int, clusters: int) -> Tensor:
    """Return centres by greedy k-means++ (Arthur & Vassilvitskii 2007), as scikit-learn draws them.

    Each next centre is the best of 2 + log(clusters) candidates, which are drawn in proportion to the squared
    distance to the centres so far. One pass a centre: while the candidates are compared, those of the next
    centre are drawn already, for each way in which the comparison can end.
    """
    draws = 2 + int(math.log(clusters))
    chosen = take(blocks, torch.randint(count, (starts,)))
    candidates = chosen.unsqueeze(1)  # (starts, candidates, features)
    seen = _Seen(
        closest=chosen.new_full((starts, count), torch.inf),
        norms=torch.cat([torch.linalg.vector_norm(block, dim=1).square_() for block in blocks]),
    )
    rows = torch.arange(starts, device=chosen.device)
    centres = []
    for _ in range(clusters):
        potential, following = _compare(blocks, seen, chosen, candidates, draws)
        best = potential.argmin(1)
        chosen, candidates = candidates[rows, best], following[rows, best]
        centres.append(chosen)
    return torch.stack(centres, 1)


@dataclass(frozen=True)
class _Seen:
    """What is known of each point."""

    closest: Tensor  # (starts, count) squared distance to the nearest of the centres so far
    norms: Tensor  # (count,) squared norm


def _compare(blocks: Blocks, seen: _Seen, chosen: Tensor, candidates: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Add the centres `chosen` (starts, features) to what is `seen`, and compare candidates for the next ones.

    Returns the inertia (starts, candidates) that each candidate would leave, and the points
    (starts, candidates, draws, features) that would be the candidates after it.
    """
    trials = torch.cat([chosen.unsqueeze(1), candidates], 1)  # (starts, 1 + candidates, features)
    rows = trials.flatten(0, 1)
    potential = candidates.new_zeros(candidates.shape[:2])
    following = candidates.unsqueeze(2).repeat(1, 1, draws, 1)  # stays where all points are duplicates
    first = 0
    for block in blocks:
        here = slice(first, first + len(block))
        first += len(block)
        squared = _squares(rows, block, seen.norms[here])
        squared = squared.unflatten(0, trials.shape[:2])  # (starts, 1 + candidates, points)
        seen.closest[:, here] = torch.minimum(seen.closest[:, here], squared[:, 0])
        left = torch.minimum(seen.closest[:, None, here], squared[:, 1:])
        potential += _draw(block, left.cumsum(2), potential, following)
    return potential, following


def _squares(rows: Tensor, points: Tensor, norms: Tensor) -> Tensor:
    """Return the squared distances (rows, points) of `rows` to `points`, whose squared `norms` are known."""
    squares, own = points.new_empty(len(rows), len(points)), rows.square().sum(1, keepdim=True)
    some = at_once(FEATURES, points.shape[1], points)
    for part, theirs, out in zip(points.split(some), norms.split(some), squares.split(some, 1), strict=True):
        torch.addmm(own + theirs, rows, part.T, alpha=-2, out=out)
    return squares.clamp_(min=0)


def _draw(block: Tensor, mass: Tensor, before: Tensor, drawn: Tensor) -> Tensor:
    """Let points of `block` take the places of points `drawn` from the blocks before it.

    At the end each place holds an independent draw from all points, in proportion to their mass. `mass`
    (starts, candidates, points) is cumulative; returns its total, to which `before` is that of the blocks before.
    """
    total = mass[..., -1]
    shares = torch.rand(*drawn.shape[:3], device=block.device) * total.unsqueeze(2)
    picked = torch.searchsorted(mass, shares, right=True).clamp(max=len(block) - 1)
    enters = torch.rand(picked.shape, device=block.device) * (before + total).unsqueeze(2) < total.unsqueeze(2)
    drawn[enters] = block[picked[enters]]
    return total
