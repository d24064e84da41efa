"""Points as a subspace shows them, which rules out most centres without reading the points themselves.

Where data has few directions in which it varies much, distances in these and the lengths of what lies outside
leave few centres that may be the nearest (Bottesch et al. 2016 bound distances in this way from block sums).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.clustering.blocks import Blocks

SHARE = 16  # features of a point for each number kept of it: all take a sixteenth of what the points take
FEWEST, MOST = 8, 64  # dimensions of the subspace
LARGE = 2**20  # features of all points: below there is nothing to gain
SAMPLE, ROUNDS = 1024, 2  # points that the subspace is fitted to, and how often
SQUARES = 4e-6  # of a squared length: what the square of its part outside may be off in float32


@dataclass(frozen=True)
class Projections:
    """What is known of each point without reading it."""

    basis: Tensor  # (features, dimensions), orthonormal
    coordinates: Tensor  # (points, dimensions + 1): the last is the length of what lies outside, at least
    products: (
        Tensor  # (points, starts): the inner products, outside, with points' own centres are at least so large
    )

    @staticmethod
    def pay(centres: Tensor, count: int) -> bool:
        """Return whether they pay. On a GPU they do not: it multiplies matrices sooner than it picks pairs."""
        large = count >= SAMPLE and count * centres.shape[2] >= LARGE
        return large and centres.device.type == "cpu" and _dimensions(centres) >= FEWEST

    @classmethod
    def of(cls, blocks: Blocks, centres: Tensor, count: int) -> Projections:
        """Return room for the projections of the `count` points in `blocks`, which are still to be filled in."""
        basis = _basis(blocks, count, _dimensions(centres))
        products = centres.new_full((count, len(centres)), -torch.inf)
        return cls(basis, centres.new_empty(count, basis.shape[1] + 1), products)

    def at(self, place: slice) -> Projections:
        """Return those of the points at `place`, as views."""
        return Projections(self.basis, self.coordinates[place], self.products[place])

    def forget(self, starts: Tensor, points: Tensor) -> None:
        """Drop what concerns the clusters of `points`, in `starts`: these were given to others."""
        self.products[points, starts] = -torch.inf

    def only(self, starts: Tensor) -> Projections:
        """Return what concerns `starts` (indices) alone."""
        return Projections(self.basis, self.coordinates, self.products[:, starts])

    def loosen(self, before: Tensor, after: Tensor, labels: Tensor) -> None:
        """Follow centres that moved, for points with `labels` (starts, points)."""
        drift = self.project(after - before)[..., -1]  # (starts, clusters): how far they moved outside
        for start, moves in enumerate(drift):
            self.products[:, start].addcmul_(self.coordinates[:, -1], moves[labels[start]], value=-1)

    def gap(self, lengths: Tensor) -> Tensor:
        """Return how much farther own centres may be than they seem, whose parts outside have these `lengths`.

        Distances are halved squares; those that seem are with all that lies outside in the same direction.
        """
        largest = self.coordinates[:, -1:] * lengths  # (points, starts): the inner product at most
        return largest - torch.maximum(self.products, -largest)

    def fill(self, points: Tensor) -> None:
        """Project `points`, whose projections these are."""
        self.coordinates.copy_(self.project(points))

    def project(self, points: Tensor) -> Tensor:
        """Return the coordinates (..., dimensions + 1) of points, or centres, (..., features)."""
        inside = points @ self.basis
        squares = torch.linalg.vector_norm(points, dim=-1, keepdim=True).square_()
        outside = squares * (1 + SQUARES) - inside.square().sum(-1, keepdim=True)
        return torch.cat([inside, outside.clamp_(min=0).sqrt_()], -1)


def _dimensions(centres: Tensor) -> int:
    return min(MOST, centres.shape[2] // SHARE - 1 - len(centres))


def _basis(blocks: Blocks, count: int, dimensions: int) -> Tensor:
    """Return the directions (features, dimensions) in which a sample of the points reaches farthest from 0."""
    step = -(-count // SAMPLE)
    sample = torch.cat([block[::step] for block in blocks])
    directions = sample[:: max(1, len(sample) // dimensions)][:dimensions].T  # subspace iteration, from points
    for _ in range(ROUNDS):
        directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
    return directions
