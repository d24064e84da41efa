"""Bounds on scores from projections of points and centers onto a subspace.

The subspace holds the few directions in which the points lie farthest from 0. Coordinates in it and the norm of
the residual leave few centers that may be the nearest, without reading the points. Bottesch et al. (2016) bound
distances in the same way, from sums over blocks of features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genexp.kmeans.blocks import CHUNK_ELEMENTS, Blocks, get_chunk_size
from genexp.kmeans.hamerly_bounds import HamerlyBounds, center_shift_norms

MIN_FEATURES_PER_DIMENSION = 16  # features per dimension of the subspace, at least
# The number of dimensions is a multiple of the first: a matrix product then takes half the time.
DIMENSION_MULTIPLE, MAX_DIMENSIONS = 16, 64
MIN_ELEMENTS = 2**20  # elements (points · features): smaller data sets gain nothing
SAMPLE_POINTS, SUBSPACE_ITERATIONS = 1024, 2  # points that the basis is fitted to, and subspace iterations
QUANTIZATION_LEVELS = 2**15 - 1  # quantized value of a coordinate that equals the norm of its point
# Increase of a squared residual norm, relative to the squared norm. 4e-6 covers float32 rounding. The rest covers
# `MAX_DIMENSIONS` quantized coordinates, whose joint error is at most 1.3e-4 of a point's norm. This error changes
# an inner product by at most the same fraction of the product of both norms. The increased residual norms of
# point and center add at least as much to the bound.
SQUARED_RESIDUAL_SLACK = 1.4e-4


@dataclass(frozen=True)
class CenterShift:
    """Upper bounds on the distances that centers moved."""

    norms: Tensor  # (starts, clusters): in all features
    residual_norms: Tensor  # (starts, clusters): outside the subspace


@dataclass(frozen=True)
class ProjectionBounds:
    """Projection of each point onto a subspace, with bounds that do not need the point itself."""

    basis: Tensor  # (features, dimensions), with orthonormal columns
    coordinates: Tensor  # int16 (points, dimensions), in units of `_quantization_step`
    residual_norms: Tensor  # (points,): upper bound on the norm outside the subspace
    # (points, starts): lower bound on the inner product of the residuals of the point and of its own center
    residual_products: Tensor
    squared_norms: Tensor  # (points,): in all features
    hamerly_bounds: HamerlyBounds  # skip points without reading their coordinates

    @staticmethod
    def is_worthwhile(centers: Tensor, num_points: int) -> bool:
        """Return whether projections save time. A GPU computes all scores faster than it selects candidates."""
        is_large = num_points >= SAMPLE_POINTS and num_points * centers.shape[2] >= MIN_ELEMENTS
        return is_large and centers.device.type == "cpu" and _choose_num_dimensions(centers) > 0

    @classmethod
    def from_blocks(cls, blocks: Blocks, centers: Tensor, num_points: int) -> ProjectionBounds:
        """Fit a basis to the points in `blocks`. `set_projections` must then set the projections."""
        dimensions, features = _choose_num_dimensions(centers), centers.shape[2]
        coordinates = centers.new_empty(num_points, dimensions, dtype=torch.int16)
        # The sample is stored in the memory of the coordinates, if it fits. `set_projections` overwrites it later.
        sample_buffer = coordinates.view(centers.dtype).flatten()
        if len(sample_buffer) < SAMPLE_POINTS * features:
            sample_buffer = centers.new_empty(SAMPLE_POINTS * features)
        sample = _sample_points(
            blocks, num_points, sample_buffer[: SAMPLE_POINTS * features].view(SAMPLE_POINTS, features)
        )
        basis, residual_products = (
            _fit_basis(sample, dimensions),
            centers.new_full((num_points, len(centers)), -torch.inf),
        )
        residual_norms, squared_norms = centers.new_empty(2, num_points)
        return cls(
            basis,
            coordinates,
            residual_norms,
            residual_products,
            squared_norms,
            HamerlyBounds.allocate(centers, num_points),
        )

    def select(self, index: slice | Tensor) -> ProjectionBounds:
        """Return the bounds of the points `index`: views for a slice, copies for int64 indices."""

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

    def invalidate(self, start_indices: Tensor, point_indices: Tensor) -> None:
        """Discard the bounds of these pairs of start and point: other code changed their labels.

        `start_indices` and `point_indices` are int64 (pairs,).
        """
        self.residual_products[point_indices, start_indices] = -torch.inf
        self.hamerly_bounds.invalidate(start_indices, point_indices)

    def select_starts(self, start_indices: Tensor) -> ProjectionBounds:
        """Return the bounds of `start_indices` only: int64 indices (starts,)."""
        return replace(
            self,
            residual_products=self.residual_products[:, start_indices],
            hamerly_bounds=self.hamerly_bounds.select_starts(start_indices),
        )

    def measure_shift(self, old_centers: Tensor, new_centers: Tensor) -> CenterShift:
        """Return how far centers moved, from both (starts, clusters, features)."""
        residual_norms = self.project((new_centers - old_centers).flatten(0, 1))[:, -1]
        return CenterShift(
            center_shift_norms(old_centers, new_centers), residual_norms.view(new_centers.shape[:2])
        )

    def shift_bounds(self, shift: CenterShift, labels: Tensor) -> Tensor:
        """Loosen the bounds after centers moved. Return the points that may change cluster: int64 (points,).

        `labels` is (starts, points).
        """
        for start, residual_norms in enumerate(shift.residual_norms):
            self.residual_products[:, start].addcmul_(
                self.residual_norms, residual_norms[labels[start].int()], value=-1
            )
        return self.hamerly_bounds.shift_bounds(shift.norms, labels)

    def score_slack(self, center_residual_norms: Tensor) -> Tensor:
        """Return how much the score of the own center may exceed its lower bound: (points, starts).

        The lower bound takes the residuals of point and center to be parallel. `center_residual_norms`
        (points, starts) are those of the own centers.
        """
        # (points, starts): upper bound on the inner product of the residuals
        max_products = self.residual_norms.unsqueeze(1) * center_residual_norms
        return max_products - torch.maximum(self.residual_products, -max_products)

    def set_projections(self, points: Tensor) -> None:
        """Set the projections and norms in these bounds, which belong to `points` (points, features)."""
        chunk_size = get_chunk_size(CHUNK_ELEMENTS, points.shape[1], points)
        parts = (
            part.split(chunk_size) for part in (points, self.coordinates, self.residual_norms, self.squared_norms)
        )
        for chunk, coordinates, residual_norms, squared_norms in zip(*parts, strict=True):
            torch.linalg.vector_norm(chunk, dim=1, out=squared_norms).square_()
            projected = self._project_with_norms(chunk, squared_norms)
            coordinates.copy_(projected[:, :-1].div_(_quantization_step(squared_norms)).round_())
            residual_norms.copy_(projected[:, -1])

    def project(self, points: Tensor) -> Tensor:
        """Return the projections of points or centers: (points, features) → (points, dimensions + 1).

        The last column is an upper bound on the norm outside the subspace.
        """
        return self._project_with_norms(points, points.square().sum(1))

    def dequantize(self) -> Tensor:
        """Return the stored projections in the layout of `project`: (points, dimensions + 1)."""
        projected = self.squared_norms.new_empty(len(self.squared_norms), self.basis.shape[1] + 1)
        projected[:, :-1] = self.coordinates
        projected[:, :-1] *= _quantization_step(self.squared_norms)
        projected[:, -1] = self.residual_norms
        return projected

    def _project_with_norms(self, points: Tensor, squared_norms: Tensor) -> Tensor:
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
    """Return the size of one quantization step of each point: (points,) squared norms → (points, 1)."""
    return (
        squared_norms.sqrt()
        .mul_(1 / QUANTIZATION_LEVELS)
        .clamp_(min=torch.finfo(squared_norms.dtype).tiny)
        .unsqueeze(1)
    )


def _choose_num_dimensions(centers: Tensor) -> int:
    return min(
        MAX_DIMENSIONS, centers.shape[2] // MIN_FEATURES_PER_DIMENSION // DIMENSION_MULTIPLE * DIMENSION_MULTIPLE
    )


def _sample_points(blocks: Blocks, num_points: int, out: Tensor) -> Tensor:
    """Copy every n-th point of each block to `out`. Return the filled part (points, features).

    `out` is (largest number of points, features). n is `num_points` divided by that number, rounded up.
    """
    step, filled = -(-num_points // len(out)), 0
    for block in blocks:
        chunk = block[::step][: len(out) - filled]
        out[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return out[:filled]


def _fit_basis(sample: Tensor, dimensions: int) -> Tensor:
    """Return an orthonormal basis (features, dimensions) of the directions in which points lie farthest from 0.

    The method is subspace iteration on `sample` (points, features).
    """
    initial_points = sample[:: max(1, len(sample) // dimensions)][:dimensions]
    # The iteration starts from orthonormalized points: large ones would overflow.
    directions = torch.linalg.qr(initial_points.T).Q
    for _ in range(SUBSPACE_ITERATIONS):
        directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
    return directions
