"""Scores that rank centers by their distance to a point.

The score of point x and center c is |c|²/2 - x·c. This is half of the squared distance, minus half of |x|². The
omitted term is the same for all centers, so the nearest center has the smallest score. One matrix product computes
the scores of many points.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from genexp.kmeans.blocks import get_chunk_size

# With fewer columns than this, the transposed product takes half the time. So does a minimum over the columns.
MIN_ROW_MAJOR_COLUMNS = 32
CHUNK_ELEMENTS = 2**19  # (points · features) per matrix product on the CPU, so that they fit in its cache
CHUNK_SCORES = 2**19  # scores computed at a time on the CPU, so that they fit in its cache
RELATIVE_ROUNDING = 4e-6  # largest float32 error of a squared distance, relative to the sum of the squared norms


@dataclass(frozen=True)
class NearestCenters:
    """Nearest center of each point in each start."""

    labels: Tensor  # int64 (points, starts)
    own_scores: Tensor  # (points, starts): score of the nearest center
    other_scores: Tensor  # (points, starts): smallest score of all other centers; inf for a single cluster


class CenterScorer:
    """Scores of points for fixed `centers` (starts, clusters, features)."""

    def __init__(self, centers: Tensor) -> None:
        self.shape = centers.shape[:2]
        self.flat_centers = centers.flatten(0, 1)
        self.half_norms = self.flat_centers.square().sum(1) / 2
        self.max_squared_norm = 2 * self.half_norms.max()
        columns, features = self.flat_centers.shape
        self.chunk_size = min(  # points whose scores are computed at a time
            get_chunk_size(CHUNK_SCORES, columns, centers), get_chunk_size(CHUNK_ELEMENTS, features, centers)
        )

    def __call__(self, points: Tensor) -> Tensor:
        """Return the scores of points (points, features) for all centers: (points, starts, clusters)."""
        if len(self.flat_centers) < MIN_ROW_MAJOR_COLUMNS:
            half_norms = self.half_norms.unsqueeze(1)
            scores = torch.addmm(half_norms, self.flat_centers, points.T, alpha=-1).T
        else:
            scores = torch.addmm(self.half_norms, points, self.flat_centers.T, alpha=-1)
        return scores.unflatten(1, self.shape)

    def find_nearest(self, points: Tensor, squared_norms: Tensor | None = None) -> NearestCenters:
        """Return the nearest centers of at most `chunk_size` points. Ties go to the first center.

        With the `squared_norms` (points,) of the points, the labels do not depend on rounding errors of the matrix
        product, which differ between chunks of different sizes: close centers are compared by `pair_scores`.
        """
        scores = self(points)
        labels = argmin_rows(scores)
        index = labels.unsqueeze(2)
        own_scores = scores.gather(2, index).squeeze(2)
        other_scores = scores.scatter_(2, index, torch.inf).amin(2)
        if squared_norms is not None:
            rounding = RELATIVE_ROUNDING * (squared_norms + self.max_squared_norm).unsqueeze(1)
            limits = own_scores + rounding
            is_close = other_scores <= limits
            if is_close.any():
                scores.scatter_(2, index, own_scores.unsqueeze(2))
                is_candidate = (scores <= limits.masked_fill(~is_close, -torch.inf).unsqueeze(2)).flatten(1)
                rows, columns = is_candidate.nonzero(as_tuple=True)
                labels[is_close] = self._find_nearest_of(points, rows, columns)
        return NearestCenters(labels, own_scores, other_scores)

    def _find_nearest_of(self, points: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the nearest cluster of each pair of row and start that occurs: int64 (keys,).

        `rows` and `columns`, int64 (pairs,), are sorted by row and column.
        """
        starts, clusters = self.shape
        keys = (rows * starts + columns // clusters).numpy()
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        scores = self.pair_scores(points, rows.numpy(), columns.numpy())
        return torch.from_numpy(find_best_columns(scores, columns.numpy(), first) % clusters)

    def pair_scores(self, points: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the score of each pair of a row of `points` and a flat index of a center: (pairs,).

        `rows` and `columns` are int64 (pairs,), and `rows` is sorted. The score of a pair does not depend on the
        other pairs. On the CPU only.
        """
        _silence_sparse_warning()
        pattern = torch.sparse_csr_tensor(
            torch.from_numpy(np.concatenate([[0], np.bincount(rows, minlength=len(points)).cumsum()])),
            torch.from_numpy(columns),
            points.new_zeros(len(columns)),
            size=(len(points), len(self.flat_centers)),
            check_invariants=False,
        )
        products = torch.sparse.sampled_addmm(pattern, points, self.flat_centers.T).values()
        scores: np.ndarray = self.half_norms.numpy()[columns] - products.numpy()
        return scores


def find_best_columns(scores: np.ndarray, columns: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the column with the smallest score of each group of pairs, of equal scores the smallest column.

    `scores` and `columns` are (pairs,). `first` (groups,) has the position of the first pair of each group.
    """
    counts = np.diff(first, append=len(scores))
    is_best = scores == np.repeat(np.minimum.reduceat(scores, first), counts)
    best: np.ndarray = np.minimum.reduceat(np.where(is_best, columns, np.iinfo(columns.dtype).max), first)
    return best


def nearest_center(points: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest center of each point: int64 (points,).

    `points` is (points, features), `centers` (clusters, features).
    """
    scorer = CenterScorer(centers.unsqueeze(0))
    return torch.cat([argmin_rows(scorer(chunk)).squeeze(1) for chunk in points.split(scorer.chunk_size)])


def argmin_rows(scores: Tensor) -> Tensor:
    """Return the index of the smallest score of each row: (..., columns) → int64 (...).

    Ties go to the first column.
    """
    # On the CPU torch finds the index element by element. NumPy is vectorized, with a fixed cost per row.
    if scores.device.type == "cpu" and scores.shape[-1] >= MIN_ROW_MAJOR_COLUMNS:
        return torch.from_numpy(scores.detach().numpy().argmin(-1))
    return scores.min(-1).indices


@cache
def _silence_sparse_warning() -> None:
    """Create a sparse tensor, so that torch's only warning that these are in beta is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], torch.zeros(0, dtype=torch.long), [], size=(1, 1), check_invariants=False)


class CenterDistances(nn.Module):
    """Squared distances of points to centers, as a module that can be exported."""

    centers: Tensor  # (clusters, features)

    def __init__(self, centers: Tensor) -> None:
        super().__init__()
        self.register_buffer("centers", centers.clone())

    def forward(self, points: Tensor) -> Tensor:
        """Return the squared distances (points, clusters) of points (points, ...)."""
        return (points.flatten(1)[:, None] - self.centers).square().sum(2)
