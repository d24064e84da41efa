"""Points as a subspace shows them, which rules out most centres without reading the points themselves.

Where data has few directions in which it varies much, distances in these and the lengths of what lies outside
leave few centres that may be the nearest (Bottesch et al. 2016 bound distances in this way from block sums).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genexp.kmeans.blocks import FEATURES, Blocks, at_once
from genexp.kmeans.hamerly_bounds import Bounds, moves

SHARE = 16  # features of a point for each dimension of the subspace
EVEN, MOST = 16, 64  # dimensions: a multiple of this, which a matrix product takes half as long for, and so many
LARGE = 2**20  # features of all points: below there is nothing to gain
SAMPLE, ROUNDS = 1024, 2  # points that the subspace is fitted to, and how often
STEPS = 2**15 - 1  # whole numbers that coordinates of points of length 1 are rounded to
# Of a squared length, by which the square of its part outside is taken to be larger: 4e-6 for what that may be
# off in float32; the rest for MOST rounded coordinates, together off by 1.3e-4 of a point's length. What they
# leave out of an inner product is no more than that share of both lengths: the product of what these gain here.
SQUARES = 1.4e-4


@dataclass(frozen=True)
class Drift:
    """How far centres moved."""

    moves: Tensor  # (starts, clusters) lengths, at most
    outside: Tensor  # (starts, clusters) those of their parts outside the subspace


@dataclass(frozen=True)
class Projections:
    """What is known of each point without reading it."""

    basis: Tensor  # (features, dimensions), orthonormal
    coordinates: Tensor  # int16 (points, dimensions), in units of `_unit`
    lengths: Tensor  # (points,) of what lies outside, at least
    products: Tensor  # (points, starts): those outside, inner, with points' own centres are at least so large
    norms: Tensor  # (points,) squared norms
    bounds: Bounds  # which spare even the look at coordinates

    @staticmethod
    def pay(centres: Tensor, count: int) -> bool:
        """Return whether they pay. On a GPU they do not: it multiplies matrices sooner than it picks pairs."""
        large = count >= SAMPLE and count * centres.shape[2] >= LARGE
        return large and centres.device.type == "cpu" and _dimensions(centres) > 0

    @classmethod
    def of(cls, blocks: Blocks, centres: Tensor, count: int) -> Projections:
        """Return room for the projections of the `count` points in `blocks`, which are still to be filled in."""
        dimensions, features = _dimensions(centres), centres.shape[2]
        coordinates = centres.new_empty(count, dimensions, dtype=torch.int16)
        room = coordinates.view(centres.dtype).flatten()  # to be filled later: until then it holds the sample
        if len(room) < SAMPLE * features:
            room = centres.new_empty(SAMPLE * features)
        sample = _sample(blocks, count, room[: SAMPLE * features].view(SAMPLE, features))
        basis, products = _basis(sample, dimensions), centres.new_full((count, len(centres)), -torch.inf)
        lengths, norms = centres.new_empty(2, count)
        return cls(basis, coordinates, lengths, products, norms, Bounds.unknown(centres, count))

    def at(self, place: slice | Tensor) -> Projections:
        """Return those of the points at `place`: views at a slice, and copies at indices."""

        def there(tensor: Tensor) -> Tensor:
            return tensor[place] if isinstance(place, slice) else tensor.index_select(0, place)

        coordinates, lengths = there(self.coordinates), there(self.lengths)
        products, norms = there(self.products), there(self.norms)
        return Projections(self.basis, coordinates, lengths, products, norms, self.bounds.at(place))

    def forget(self, starts: Tensor, points: Tensor) -> None:
        """Drop what concerns the clusters of `points`, in `starts`: these were given to others."""
        self.products[points, starts] = -torch.inf
        self.bounds.forget(starts, points)

    def only(self, starts: Tensor) -> Projections:
        """Return what concerns `starts` (indices) alone."""
        return replace(self, products=self.products[:, starts], bounds=self.bounds.only(starts))

    def drift(self, before: Tensor, after: Tensor) -> Drift:
        """Return how far centres moved."""
        outside = self.project((after - before).flatten(0, 1))[:, -1]
        return Drift(moves(before, after), outside.view(after.shape[:2]))

    def loosen(self, drift: Drift, labels: Tensor) -> Tensor:
        """Follow centres that moved, for points with `labels` (starts, points); return which to compare anew."""
        for start, lengths in enumerate(drift.outside):
            self.products[:, start].addcmul_(self.lengths, lengths[labels[start].int()], value=-1)
        return self.bounds.loosen(drift.moves, labels)

    def gap(self, lengths: Tensor) -> Tensor:
        """Return how much farther own centres may be than they seem, whose parts outside have these `lengths`.

        Distances are halved squares; those that seem are with all that lies outside in the same direction.
        """
        largest = self.lengths.unsqueeze(1) * lengths  # (points, starts): the inner product at most
        return largest - torch.maximum(self.products, -largest)

    def fill(self, points: Tensor) -> None:
        """Project `points`, whose projections these are."""
        rows = at_once(FEATURES, points.shape[1], points)
        parts = (part.split(rows) for part in (points, self.coordinates, self.lengths, self.norms))
        for some, coordinates, lengths, norms in zip(*parts, strict=True):
            torch.linalg.vector_norm(some, dim=1, out=norms).square_()
            projected = self._project(some, norms)
            coordinates.copy_(projected[:, :-1].div_(_unit(norms)).round_())
            lengths.copy_(projected[:, -1])

    def project(self, points: Tensor) -> Tensor:
        """Return the coordinates (points, dimensions + 1) of points, or centres, (points, features).

        The last is the length of what lies outside, at least.
        """
        return self._project(points, points.square().sum(1))

    def projected(self) -> Tensor:
        """Return what `project` did of the points, in the precision that was kept."""
        projected = self.norms.new_empty(len(self.norms), self.basis.shape[1] + 1)
        projected[:, :-1] = self.coordinates
        projected[:, :-1] *= _unit(self.norms)
        projected[:, -1] = self.lengths
        return projected

    def _project(self, points: Tensor, norms: Tensor) -> Tensor:
        projected = points.new_empty(len(points), self.basis.shape[1] + 1)
        inside = torch.mm(points, self.basis, out=projected[:, :-1])
        lengths = torch.linalg.vector_norm(inside, dim=1)
        projected[:, -1] = (norms * (1 + SQUARES)).addcmul_(lengths, lengths, value=-1).clamp_(min=0).sqrt_()
        return projected


def _unit(norms: Tensor) -> Tensor:
    """Return what one step of each point's coordinates is, (points, 1), from squared `norms`."""
    return norms.sqrt().mul_(1 / STEPS).clamp_(min=torch.finfo(norms.dtype).tiny).unsqueeze(1)


def _dimensions(centres: Tensor) -> int:
    return min(MOST, centres.shape[2] // SHARE // EVEN * EVEN)


def _sample(blocks: Blocks, count: int, room: Tensor) -> Tensor:
    """Return points from all over the `count` in `blocks`, in `room` (most points, features)."""
    step, filled = -(-count // len(room)), 0
    for block in blocks:
        some = block[::step][: len(room) - filled]
        room[filled : filled + len(some)] = some
        filled += len(some)
    return room[:filled]


def _basis(sample: Tensor, dimensions: int) -> Tensor:
    """Return the directions (features, dimensions) in which points reach farthest from 0, by a sample of them."""
    some = sample[:: max(1, len(sample) // dimensions)][:dimensions]
    directions = torch.linalg.qr(some.T).Q  # subspace iteration, from points: of length 1, or large ones overflow
    for _ in range(ROUNDS):
        directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
    return directions
