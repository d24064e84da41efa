"""Points as a subspace shows them, which rules out most centers without reading the points themselves.

Where data has few directions in which it varies much, distances in these and the lengths of what lies outside
leave few centers that may be the nearest (Bottesch et al. 2016 bound distances in this way from block sums).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genexp.kmeans.blocks import CHUNK_ELEMENTS, Blocks, get_chunk_rows
from genexp.kmeans.hamerly_bounds import HamerlyBounds, center_shift

FEATURES_PER_DIMENSION = 16  # features of a point for each dimension of the subspace
DIMENSION_MULTIPLE, MAX_DIMENSIONS = (
    16,
    64,
)  # dimensions: a multiple of this, which a matrix product takes half as long for, and so many
MIN_ELEMENTS = 2**20  # features of all points: below there is nothing to gain
SAMPLE_POINTS, SUBSPACE_ITERATIONS = 1024, 2  # points that the subspace is fitted to, and how often
QUANTIZATION_LEVELS = 2**15 - 1  # whole numbers that coordinates of points of length 1 are rounded to
# Of a squared length, by which the square of its part outside is taken to be larger: 4e-6 for what that may be
# off in float32; the rest for MOST rounded coordinates, together off by 1.3e-4 of a point's length. What they
# leave out of an inner product is no more than that share of both lengths: the product of what these gain here.
SQUARED_RESIDUAL_SLACK = 1.4e-4


@dataclass(frozen=True)
class CenterShift:
    """How far centers moved."""

    norms: Tensor  # (starts, clusters) lengths, at most
    residual_norms: Tensor  # (starts, clusters) those of their parts outside the subspace


@dataclass(frozen=True)
class ProjectionBounds:
    """What is known of each point without reading it."""

    basis: Tensor  # (features, dimensions), orthonormal
    coordinates: Tensor  # int16 (points, dimensions), in units of `_unit`
    residual_norms: Tensor  # (points,) of what lies outside, at least
    residual_products: (
        Tensor  # (points, starts): those outside, inner, with points' own centers are at least so large
    )
    squared_norms: Tensor  # (points,) squared norms
    hamerly_bounds: HamerlyBounds  # which spare even the look at coordinates

    @staticmethod
    def is_worthwhile(centers: Tensor, count: int) -> bool:
        """Return whether they pay. On a GPU they do not: it multiplies matrices sooner than it picks pairs."""
        is_large = count >= SAMPLE_POINTS and count * centers.shape[2] >= MIN_ELEMENTS
        return is_large and centers.device.type == "cpu" and _subspace_dimensions(centers) > 0

    @classmethod
    def allocate(cls, blocks: Blocks, centers: Tensor, count: int) -> ProjectionBounds:
        """Return room for the projections of the `count` points in `blocks`, which are still to be filled in."""
        dimensions, features = _subspace_dimensions(centers), centers.shape[2]
        coordinates = centers.new_empty(count, dimensions, dtype=torch.int16)
        sample_buffer = coordinates.view(
            centers.dtype
        ).flatten()  # to be filled later: until then it holds the sample
        if len(sample_buffer) < SAMPLE_POINTS * features:
            sample_buffer = centers.new_empty(SAMPLE_POINTS * features)
        sample = _sample_points(
            blocks, count, sample_buffer[: SAMPLE_POINTS * features].view(SAMPLE_POINTS, features)
        )
        basis, residual_products = (
            _fit_basis(sample, dimensions),
            centers.new_full((count, len(centers)), -torch.inf),
        )
        residual_norms, squared_norms = centers.new_empty(2, count)
        return cls(
            basis,
            coordinates,
            residual_norms,
            residual_products,
            squared_norms,
            HamerlyBounds.allocate(centers, count),
        )

    def select(self, index: slice | Tensor) -> ProjectionBounds:
        """Return those of the points at `place`: views at a slice, and copies at indices."""

        def select_rows(tensor: Tensor) -> Tensor:
            return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)

        coordinates, residual_norms = select_rows(self.coordinates), select_rows(self.residual_norms)
        residual_products, squared_norms = select_rows(self.residual_products), select_rows(self.squared_norms)
        return ProjectionBounds(
            self.basis,
            coordinates,
            residual_norms,
            residual_products,
            squared_norms,
            self.hamerly_bounds.select(index),
        )

    def invalidate(self, starts: Tensor, points: Tensor) -> None:
        """Drop what concerns the clusters of `points`, in `starts`: these were given to others."""
        self.residual_products[points, starts] = -torch.inf
        self.hamerly_bounds.invalidate(starts, points)

    def select_starts(self, starts: Tensor) -> ProjectionBounds:
        """Return what concerns `starts` (indices) alone."""
        return replace(
            self,
            residual_products=self.residual_products[:, starts],
            hamerly_bounds=self.hamerly_bounds.select_starts(starts),
        )

    def measure_shift(self, old_centers: Tensor, new_centers: Tensor) -> CenterShift:
        """Return how far centers moved."""
        residual_norms = self.project((new_centers - old_centers).flatten(0, 1))[:, -1]
        return CenterShift(center_shift(old_centers, new_centers), residual_norms.view(new_centers.shape[:2]))

    def shift_bounds(self, shift: CenterShift, labels: Tensor) -> Tensor:
        """Follow centers that moved, for points with `labels` (starts, points); return which to compare anew."""
        for start, residual_norms in enumerate(shift.residual_norms):
            self.residual_products[:, start].addcmul_(
                self.residual_norms, residual_norms[labels[start].int()], value=-1
            )
        return self.hamerly_bounds.shift_bounds(shift.norms, labels)

    def slack(self, center_residual_norms: Tensor) -> Tensor:
        """Return how much farther own centers may be than they seem, whose parts outside have these `lengths`.

        Distances are halved squares; those that seem are with all that lies outside in the same direction.
        """
        max_products = (
            self.residual_norms.unsqueeze(1) * center_residual_norms
        )  # (points, starts): the inner product at most
        return max_products - torch.maximum(self.residual_products, -max_products)

    def fill(self, points: Tensor) -> None:
        """Project `points`, whose projections these are."""
        rows = get_chunk_rows(CHUNK_ELEMENTS, points.shape[1], points)
        parts = (part.split(rows) for part in (points, self.coordinates, self.residual_norms, self.squared_norms))
        for chunk, coordinates, residual_norms, squared_norms in zip(*parts, strict=True):
            torch.linalg.vector_norm(chunk, dim=1, out=squared_norms).square_()
            projected = self._project(chunk, squared_norms)
            coordinates.copy_(projected[:, :-1].div_(_quantization_step(squared_norms)).round_())
            residual_norms.copy_(projected[:, -1])

    def project(self, points: Tensor) -> Tensor:
        """Return the coordinates (points, dimensions + 1) of points, or centers, (points, features).

        The last is the length of what lies outside, at least.
        """
        return self._project(points, points.square().sum(1))

    def dequantize(self) -> Tensor:
        """Return what `project` did of the points, in the precision that was kept."""
        projected = self.squared_norms.new_empty(len(self.squared_norms), self.basis.shape[1] + 1)
        projected[:, :-1] = self.coordinates
        projected[:, :-1] *= _quantization_step(self.squared_norms)
        projected[:, -1] = self.residual_norms
        return projected

    def _project(self, points: Tensor, squared_norms: Tensor) -> Tensor:
        projected = points.new_empty(len(points), self.basis.shape[1] + 1)
        inside = torch.mm(points, self.basis, out=projected[:, :-1])
        inside_norms = torch.linalg.vector_norm(inside, dim=1)
        projected[:, -1] = (
            (squared_norms * (1 + SQUARED_RESIDUAL_SLACK))
            .addcmul_(inside_norms, inside_norms, value=-1)
            .clamp_(min=0)
            .sqrt_()
        )
        return projected


def _quantization_step(squared_norms: Tensor) -> Tensor:
    """Return what one step of each point's coordinates is, (points, 1), from squared `norms`."""
    return (
        squared_norms.sqrt()
        .mul_(1 / QUANTIZATION_LEVELS)
        .clamp_(min=torch.finfo(squared_norms.dtype).tiny)
        .unsqueeze(1)
    )


def _subspace_dimensions(centers: Tensor) -> int:
    return min(
        MAX_DIMENSIONS, centers.shape[2] // FEATURES_PER_DIMENSION // DIMENSION_MULTIPLE * DIMENSION_MULTIPLE
    )


def _sample_points(blocks: Blocks, count: int, out: Tensor) -> Tensor:
    """Return points from all over the `count` in `blocks`, in `room` (most points, features)."""
    step, filled = -(-count // len(out)), 0
    for block in blocks:
        chunk = block[::step][: len(out) - filled]
        out[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return out[:filled]


def _fit_basis(sample: Tensor, dimensions: int) -> Tensor:
    """Return the directions (features, dimensions) in which points reach farthest from 0, by a sample of them."""
    chunk = sample[:: max(1, len(sample) // dimensions)][:dimensions]
    directions = torch.linalg.qr(chunk.T).Q  # subspace iteration, from points: of length 1, or large ones overflow
    for _ in range(SUBSPACE_ITERATIONS):
        directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
    return directions
