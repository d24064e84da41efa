"""Whole k-means fits against scikit-learn and faiss: same points, same initial centres, same iterations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import faiss
import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from benchmark import memory
from benchmark.clock import now
from benchmark.compose import training_stream
from benchmark.isolated_process import apart
from benchmark.paired_rounds import Comparison, alone, compare, compete
from genexp.kmeans.init import greedy_plus_plus
from genexp.kmeans.lloyd import fit, iterate, tally
from genexp.runs.build import WHOLE_BATCH, WHOLE_FEATURES

ITERATIONS = 25  # what faiss does by default
TOLERANCE = 1e-3  # of the inertia
LONG = 0.2  # seconds
LARGE = 2**20  # bytes of points: with fewer, memory is not worth a look


@dataclass(frozen=True)
class Fit:
    """Where a fit ended."""

    centres: np.ndarray  # (clusters, features)
    labels: np.ndarray  # (points,)


class _Blocks:
    def __init__(self, points: Tensor) -> None:
        self._points = points
        self._rows = min(WHOLE_BATCH, max(1, WHOLE_FEATURES // points.shape[1]))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._points.split(self._rows))


def run(rounds: int) -> list[Comparison]:
    """Measure fits/s. Raises AssertionError where inertias differ by more than 0.1 %."""
    rows = []
    for name, points, clusters in alone(lambda: list(_tasks())):
        initial = _initial(points, clusters)
        contestants: dict[str, Callable[[], Fit]] = {
            "": partial(_ours, points, initial),
            "scikit-learn, Lloyd": partial(_scikit_learn, points, initial, "lloyd"),
            "scikit-learn, Elkan": partial(_scikit_learn, points, initial, "elkan"),
            "faiss": partial(_faiss, points, initial),
        }
        alone(partial(_check, points, contestants))
        timed = {rival: partial(_speed, fit) for rival, fit in contestants.items()}
        rows += compete(f"k-means {name} k={clusters}", timed.pop(""), timed, rounds=rounds, unit="fits/s")
    return rows + _starts(rounds) + _memory()


def _tasks() -> Iterator[tuple[str, np.ndarray, int]]:
    yield "500×2", training_stream("point", "model=kmeans", "dataset=circles").numpy(), 2
    images = _images()
    for clusters in (10, 100, 1000):
        yield f"{len(images):,}×{images.shape[1]}", images, clusters
    generator = np.random.default_rng(0)
    clouds = generator.normal(scale=2, size=(256, 32))
    points = clouds[generator.integers(256, size=1_000_000)] + generator.normal(size=(1_000_000, 32))
    yield "1,000,000×32", points.astype(np.float32), 256


def _initial(points: np.ndarray, clusters: int) -> np.ndarray:
    return points[np.random.default_rng(1).permutation(len(points))[:clusters]].copy()


def _images() -> np.ndarray:
    return (training_stream("image", "model=kmeans", "dataset=fashion_mnist").flatten(1) / 255).numpy()


def _ours(points: np.ndarray, initial: np.ndarray) -> Fit:
    blocks, centres = _Blocks(torch.from_numpy(points)), torch.from_numpy(initial).unsqueeze(0)
    fitted, labels = fit(blocks, len(points), centres, ITERATIONS)
    return Fit(fitted.numpy(), labels.numpy())


def _scikit_learn(points: np.ndarray, initial: np.ndarray, algorithm: str) -> Fit:
    model = KMeans(len(initial), init=initial, n_init=1, max_iter=ITERATIONS, tol=0, algorithm=algorithm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it did not converge: no more is asked of it
        model.fit(points)
    return Fit(model.cluster_centers_, model.labels_)


def _faiss(points: np.ndarray, initial: np.ndarray) -> Fit:
    clusters, features = initial.shape
    model: Any = faiss.Kmeans(
        features, clusters, niter=ITERATIONS, max_points_per_centroid=len(points), min_points_per_centroid=1
    )
    model.train(points, init_centroids=initial)
    return Fit(model.centroids, model.index.search(points, 1)[1][:, 0])


def _check(points: np.ndarray, contestants: dict[str, Callable[[], Fit]]) -> None:
    """Compare the inertias in float64, each about the fit's own centres."""
    inertias = {name: _inertia(points, fit()) for name, fit in contestants.items()}
    for name, inertia in inertias.items():
        assert abs(inertia - inertias[""]) < TOLERANCE * inertia, f"{name}: not the same clusters: {inertias}"


def _inertia(points: np.ndarray, fit: Fit) -> float:
    parts = zip(np.array_split(points, 100), np.array_split(fit.labels, 100), strict=True)
    return sum(float(((part - fit.centres[labels]).astype(np.float64) ** 2).sum()) for part, labels in parts)


def _speed(fit: Callable[[], Fit]) -> float:
    """Return fits/s, of as many as it takes to tell a short fit from chance."""
    begun, done = now(), 0
    while done == 0 or now() - begun < LONG:
        fit()
        done += 1
    return done / (now() - begun)


def _starts(rounds: int) -> list[Comparison]:
    """Measure what ten k-means++ starts, fitted together, cost beside one."""
    images, iterations = alone(_images), 10
    blocks, count = _Blocks(torch.from_numpy(images)), len(images)

    def fit(starts: int) -> float:
        torch.manual_seed(0)
        begun = now()
        centres = greedy_plus_plus(blocks, count, starts, 10)
        totals = tally(blocks, centres, count)
        for _ in range(iterations):
            centres, totals = iterate(blocks, centres, totals)
        return 1 / (now() - begun)

    task = f"k-means++ and {iterations} iterations, {count:,}×784 k=10, 10 starts"
    return compete(task, partial(fit, 10), {"1 start": partial(fit, 1)}, rounds=rounds, unit="fits/s")


def _memory() -> list[Comparison]:
    """Measure what a fit takes besides the points, in one round: others differ by a few percent of them."""
    rows = []
    for index, (name, points, clusters) in enumerate(_tasks() if memory.is_told() else ()):
        if points.nbytes > LARGE:
            task, size = f"k-means {name} k={clusters}, memory", [points.nbytes / 1e6]
            rows.append(compare(task, "the points", [apart(_taken, index)], size, unit="MB"))
    return rows


def _taken(index: int) -> float:
    _, points, clusters = next(islice(_tasks(), index, None))
    initial = _initial(points, clusters)
    _ours(points[:2048].copy(), initial)  # what libraries take once is not the fit's
    return memory.taken(partial(_ours, points, initial))
