"""Assignment step of Lloyd's algorithm with bounds from projections of points and centers onto a subspace.

The subspace is spanned by the directions in which the points are farthest from 0. From the coordinates in the
subspace and the norm of the residual, the step computes bounds on the distances. The bounds exclude most centers
without reading the points. Bottesch et al. (2016) bound distances in the same way, from sums over blocks of
features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genexp.kmeans.blocks import Blocks
from genexp.kmeans.distances import RELATIVE_ROUNDING, NearestCenters, find_best_columns
from genexp.kmeans.hamerly_bounds import HamerlyBounds

MIN_FEATURES_PER_DIMENSION = 16  # features per dimension of the subspace, at least
# The number of dimensions is a multiple of DIMENSION_MULTIPLE: a matrix product then takes half the time.
DIMENSION_MULTIPLE, MAX_DIMENSIONS = 16, 64
MIN_ELEMENTS = 2**20  # elements (points · features): smaller data sets gain nothing
SAMPLE_POINTS, SUBSPACE_ITERATIONS = 1024, 2  # points that the basis is fitted to, and subspace iterations
CHUNK_BOUNDS = 2**17  # bounds on scores computed at a time, so that they fit in the cache
# A fraction of the clusters, plus a number of clusters. If the mean number of candidates per point and start
# exceeds their sum, it is cheaper to compute all scores.
MAX_CANDIDATE_FRACTION, MAX_EXTRA_CANDIDATES = 0.1, 2


@dataclass(frozen=True)
class _Screening:
    """Bounds on the scores of some points, from their projections. Flat indices are those of (rows, starts, …)."""

    rows: Tensor  # int64 (rows,): the points
    indices: Tensor  # int64 (rows,): their indices in the data set
    own_columns: Tensor  # int64 (rows, starts): own center as a flat index of start and cluster
    own_lower: Tensor  # (rows, starts): lower bound on the score of the own center
    own_upper: Tensor  # (rows, starts): upper bound on it
    other_lower: Tensor  # (rows, starts): lower bound on the scores of all other centers but the candidates
    candidates: (
        np.ndarray
    )  # int64 (candidates,): flat index of row, start and cluster of a center that may be nearer
    candidate_lower: np.ndarray  # (candidates,): lower bound on its score


class ProjectionBounds(HamerlyBounds):
    """Assignment that compares a point only with the centers that its projection does not rule out."""

    @staticmethod
    def is_worthwhile(centers: Tensor, num_points: int) -> bool:
        """Return whether projections save time: many points with many features.

        `centers` is (starts, clusters, features).
        """
        is_large = num_points >= SAMPLE_POINTS and num_points * centers.shape[2] >= MIN_ELEMENTS
        return is_large and _choose_num_dimensions(centers) > 0

    def __init__(self, blocks: Blocks, centers: Tensor, num_points: int) -> None:
        super().__init__(centers, num_points)
        self._basis = _fit_basis(_sample_points(blocks, num_points), _choose_num_dimensions(centers))
        # (points, dimensions + 1): coordinates, and an upper bound on the norm of the residual
        self._projections = centers.new_empty(num_points, self._basis.shape[1] + 1)
        # (points, starts): lower bound on the inner product of the residuals of the point and of its own center
        self._residual_products = centers.new_full((num_points, len(centers)), -torch.inf)

    def move_centers(self, centers: Tensor, labels: Tensor) -> None:
        """Set the centers (starts, clusters, features) of the next pass, and update the bounds."""
        super().move_centers(centers, labels)
        flat_centers = self._scorer.flat_centers
        self._center_projections = self.project(flat_centers, flat_centers.square().sum(1))
        # (starts,): first column of each start
        self._start_offsets = torch.arange(0, len(flat_centers), centers.shape[1])

    def _discard_bounds(self, mask: Tensor) -> None:
        super()._discard_bounds(mask)
        self._residual_products.masked_fill_(mask, -torch.inf)

    def select_starts(self, start_indices: Tensor) -> None:
        """Keep the bounds of `start_indices` only: int64 indices (starts,)."""
        super().select_starts(start_indices)
        self._residual_products = self._residual_products[:, start_indices]

    def _loosen_bounds(self, shifts: Tensor, labels: Tensor) -> None:
        super()._loosen_bounds(shifts, labels)
        flat_shifts = shifts.flatten(0, 1)
        residual_norms = self.project(flat_shifts, flat_shifts.square().sum(1))[:, -1].view(shifts.shape[:2])
        for start, norms in enumerate(residual_norms):
            self._residual_products[:, start].addcmul_(
                self._projections[:, -1], norms.index_select(0, labels[start].int()), value=-1
            )

    def _assign(self, points: Tensor, first: int, labels: Tensor) -> None:
        if self._is_first_pass:
            super()._assign(points, first, labels)
            return
        rows = self._find_uncertain_rows(first, len(points))
        screening = self._screen(rows, first, labels)
        max_candidates = MAX_CANDIDATE_FRACTION * self._scorer.shape[1] + MAX_EXTRA_CANDIDATES
        if len(screening.candidates) <= max_candidates * screening.own_columns.numel():
            self._compare_with_candidates(points, screening, labels)
        else:
            for some_rows in rows.split(self._scorer.chunk_size):
                self._compare_with_all(points.index_select(0, some_rows), some_rows, first, labels)

    def _screen(self, rows: Tensor, first: int, labels: Tensor) -> _Screening:
        """Find the centers that may be nearer to the points `rows` than their own.

        `rows` count from `first`, an index of the data set.
        """
        starts, clusters = self._scorer.shape
        indices = rows + first
        projections = self._projections.index_select(0, indices)
        own_columns = labels.index_select(1, rows).T + self._start_offsets
        # The lower bounds on scores take the residuals of point and center to be parallel.
        max_products = projections[:, -1:] * self._center_projections[:, -1][own_columns]
        products = self._residual_products.index_select(0, indices)
        own_slack = max_products - torch.maximum(products, -max_products)
        squared_norms = self._squared_norms.index_select(0, indices).unsqueeze(1)
        limit_slack = own_slack + RELATIVE_ROUNDING * (squared_norms + self._scorer.max_squared_norm)
        # Where the margin is positive, the point certainly stays.
        limit_slack.masked_fill_(self._margins.index_select(0, indices) > 0, -torch.inf)
        own_lower, other_lower = torch.empty_like(own_slack), torch.empty_like(own_slack)
        size = max(1, CHUNK_BOUNDS // (starts * clusters))
        buffer = projections.new_empty(min(size, len(rows)), starts * clusters)
        candidates, candidate_lower = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for begin in range(0, len(rows), size):
            chunk = slice(begin, begin + size)
            lower = torch.addmm(
                self._scorer.half_norms,
                projections[chunk],
                self._center_projections.T,
                alpha=-1,
                out=buffer[: len(rows) - begin],
            )
            torch.gather(lower, 1, own_columns[chunk], out=own_lower[chunk])
            lower.scatter_(1, own_columns[chunk], torch.inf)
            by_start = lower.view(-1, starts, clusters)
            limits = (own_lower[chunk] + limit_slack[chunk]).unsqueeze(2)
            found = np.flatnonzero(by_start.numpy() <= limits.numpy())
            flat_lower = lower.view(-1).numpy()
            candidate_lower.append(flat_lower[found])
            candidates.append(found + begin * starts * clusters)
            flat_lower[found] = np.inf
            torch.amin(by_start, 2, out=other_lower[chunk])
        return _Screening(
            rows,
            indices,
            own_columns,
            own_lower,
            own_lower + own_slack,
            other_lower,
            np.concatenate(candidates),
            np.concatenate(candidate_lower),
        )

    def _compare_with_candidates(self, points: Tensor, screening: _Screening, labels: Tensor) -> None:
        """Compare points with the candidates and their own centers. Set their labels and bounds."""
        starts, clusters = self._scorer.shape
        squared_norms = self._squared_norms.index_select(0, screening.indices)
        margins = self._compute_margins(screening.own_upper, screening.other_lower, squared_norms.unsqueeze(1))
        torch.maximum(margins, self._margins.index_select(0, screening.indices), out=margins)
        candidates = screening.candidates
        if len(candidates):
            keys = candidates // clusters  # flat indices of row and start, sorted
            first = np.flatnonzero(np.diff(keys, prepend=-1))  # position of the first candidate of each key
            keys = keys[first]
            # The pairs that are compared: for each key its own center, then its candidates.
            own = screening.own_columns.flatten().numpy()[keys] % clusters + keys * clusters
            pairs = _insert(candidates, first, own)
            lower = _insert(screening.candidate_lower, first, screening.own_lower.flatten().numpy()[keys])
            first += np.arange(len(first))
            rows, columns = np.divmod(pairs, starts * clusters)
            scores = self._scorer.pair_scores(points, screening.rows.numpy()[rows], columns)
            best = find_best_columns(scores, columns, first)
            is_best = columns == np.repeat(best, np.diff(first, append=len(columns)))
            best_scores, best_lower = torch.from_numpy(scores[is_best]), torch.from_numpy(lower[is_best])
            scores[is_best] = np.inf
            second_scores = torch.from_numpy(np.minimum.reduceat(scores, first))
            key_rows, key_starts = (torch.from_numpy(part) for part in np.divmod(keys, starts))
            best_centers, key_indices = torch.from_numpy(best), screening.indices[key_rows]
            labels[key_starts, screening.rows[key_rows]] = (best_centers % clusters).to(labels.dtype)
            other_scores = torch.minimum(second_scores, screening.other_lower[key_rows, key_starts])
            margins[key_rows, key_starts] = self._compute_margins(
                best_scores, other_scores, squared_norms[key_rows]
            )
            max_products = self._projections[key_indices, -1] * self._center_projections[best_centers, -1]
            self._residual_products[key_indices, key_starts] = best_lower + max_products - best_scores
        self._margins.index_copy_(0, screening.indices, margins)

    def _compare_with_all(self, points: Tensor, rows: Tensor, first: int, labels: Tensor) -> NearestCenters:
        """Compare points with all centers. Set their labels and bounds; in the first pass, their projections."""
        found = super()._compare_with_all(points, rows, first, labels)
        indices = rows + first
        if self._is_first_pass:
            self._projections[indices] = self.project(points, self._squared_norms[indices])
        projections = self._projections[indices].unsqueeze(1)  # (points, 1, dimensions + 1)
        own_columns = found.labels + self._start_offsets
        inner_products = (projections * self._center_projections[own_columns])[..., :-1].sum(2)
        residual_products = self._scorer.half_norms[own_columns] - inner_products - found.own_scores
        self._residual_products[indices] = residual_products
        return found

    def project(self, points: Tensor, squared_norms: Tensor) -> Tensor:
        """Return the projections of points or centers: (points, features) → (points, dimensions + 1).

        The last column is an upper bound on the norm outside the subspace.
        """
        projected = points.new_empty(len(points), self._basis.shape[1] + 1)
        inside = torch.mm(points, self._basis, out=projected[:, :-1])
        inside_squared_norms = torch.linalg.vector_norm(inside, dim=1).square_()
        # Rounding changes an inner product by at most a fraction of the product of both norms. The increased
        # residual norms of point and center add at least as much to the bound.
        residual = (squared_norms * (1 + RELATIVE_ROUNDING)).sub_(inside_squared_norms)
        projected[:, -1] = residual.clamp_(min=0).sqrt_()
        return projected


def _insert(values: np.ndarray, positions: np.ndarray, inserted: np.ndarray) -> np.ndarray:
    """Return `values` with `inserted` before the ascending `positions`. np.insert takes several times as long."""
    result = np.empty(len(values) + len(inserted), values.dtype)
    is_old = np.ones(len(result), dtype=bool)
    new_positions = positions + np.arange(len(positions))
    is_old[new_positions] = False
    result[new_positions], result[is_old] = inserted, values
    return result


def _choose_num_dimensions(centers: Tensor) -> int:
    return min(
        MAX_DIMENSIONS, centers.shape[2] // MIN_FEATURES_PER_DIMENSION // DIMENSION_MULTIPLE * DIMENSION_MULTIPLE
    )


def _sample_points(blocks: Blocks, num_points: int) -> Tensor:
    """Return every n-th point of each block: at most `SAMPLE_POINTS` points (points, features)."""
    step = -(-num_points // SAMPLE_POINTS)
    return torch.cat([block[::step].clone() for block in blocks])


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
