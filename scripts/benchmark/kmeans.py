"""k-means fits against scikit-learn and faiss, with equal points, initial centers and iterations.

The assignment steps of genexp are also compared with each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from benchmark import memory
from benchmark.clock import read_seconds
from benchmark.compose import load_training_stream
from benchmark.isolated_process import run_in_new_process
from benchmark.paired_rounds import PairedComparison, compare, run_in_thread, run_paired_rounds
from genexp.kmeans.blocks import MAX_VIEW_ROWS, Blocks
from genexp.kmeans.hamerly_bounds import ExhaustiveAssignment, HamerlyBounds
from genexp.kmeans.init import kmeans_plusplus
from genexp.kmeans.lloyd import assign, choose_assignment, fit, lloyd_step

ITERATIONS = 25  # default of faiss
INERTIA_TOLERANCE = 1e-3  # largest relative difference of inertias
MAX_EXHAUSTIVE_CLUSTERS = 300  # more take minutes without bounds
MIN_SECONDS = 0.2  # a fit is repeated until so much time has passed
MIN_POINT_BYTES = 2**20  # memory is measured only for tasks with more bytes of points


@dataclass(frozen=True)
class FitResult:
    """Result of one k-means fit."""

    centers: np.ndarray  # (clusters, features)
    labels: np.ndarray  # (points,)


def run(rounds: int) -> list[PairedComparison]:
    """Measure fits/s. Raises AssertionError if inertias differ by more than 0.1 %."""
    rows = []
    for name, points, clusters in run_in_thread(lambda: list(_generate_tasks())):
        initial_centers = _select_initial_centers(points, clusters)
        contenders: dict[str, Callable[[], FitResult]] = {
            "": partial(_fit_genexp, points, initial_centers),
            "scikit-learn, Lloyd": partial(_fit_sklearn, points, initial_centers, "lloyd"),
            "scikit-learn, Elkan": partial(_fit_sklearn, points, initial_centers, "elkan"),
        }
        if find_spec("faiss") is not None:
            contenders["faiss"] = partial(_fit_faiss, points, initial_centers)
        run_in_thread(partial(_check_inertias, points, contenders))
        measures = {rival: partial(_measure_fits_per_second, fit) for rival, fit in contenders.items()}
        rows += run_paired_rounds(
            f"k-means {name} k={clusters}", measures.pop(""), measures, rounds=rounds, unit="fits/s"
        )
    return rows + _compare_assignments(rounds) + _compare_init_counts(rounds) + _compare_memory()


def _generate_tasks() -> Iterator[tuple[str, np.ndarray, int]]:
    yield "500×2", load_training_stream("point", "model=kmeans", "dataset=circles").numpy(), 2
    images = _load_images()
    for clusters in (10, 100, 1000):
        yield f"{len(images):,}×{images.shape[1]}", images, clusters
    generator = np.random.default_rng(0)
    cloud_centers = generator.normal(scale=2, size=(256, 32))
    points = cloud_centers[generator.integers(256, size=1_000_000)] + generator.normal(size=(1_000_000, 32))
    yield "1,000,000×32", points.astype(np.float32), 256


def _select_initial_centers(points: np.ndarray, clusters: int) -> np.ndarray:
    return points[np.random.default_rng(1).permutation(len(points))[:clusters]].copy()


def _load_images() -> np.ndarray:
    return (load_training_stream("image", "model=kmeans", "dataset=fashion_mnist").flatten(1) / 255).numpy()


def _fit_genexp(points: np.ndarray, initial_centers: np.ndarray) -> FitResult:
    blocks, centers = _split(points), torch.from_numpy(initial_centers).unsqueeze(0)
    with torch.no_grad():
        fitted_centers, labels = fit(blocks, len(points), centers, ITERATIONS)
    return FitResult(fitted_centers.numpy(), labels.numpy())


def _split(points: np.ndarray) -> tuple[Tensor, ...]:
    """Return points in blocks, as a data set in memory yields them."""
    return torch.from_numpy(points).split(MAX_VIEW_ROWS)


def _fit_sklearn(points: np.ndarray, initial_centers: np.ndarray, algorithm: str) -> FitResult:
    model = KMeans(
        len(initial_centers), init=initial_centers, n_init=1, max_iter=ITERATIONS, tol=0, algorithm=algorithm
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing convergence, which is expected
        model.fit(points)
    return FitResult(model.cluster_centers_, model.labels_)


def _fit_faiss(points: np.ndarray, initial_centers: np.ndarray) -> FitResult:
    import faiss

    clusters, features = initial_centers.shape
    model: Any = faiss.Kmeans(
        features, clusters, niter=ITERATIONS, max_points_per_centroid=len(points), min_points_per_centroid=1
    )
    model.train(points, init_centroids=initial_centers)
    return FitResult(model.centroids, model.index.search(points, 1)[1][:, 0])


def _check_inertias(points: np.ndarray, contenders: dict[str, Callable[[], FitResult]]) -> None:
    """Compare the inertias, in float64, each with the fit's own centers. Raises AssertionError."""
    inertias = {name: _inertia(points, fit()) for name, fit in contenders.items()}
    for name, inertia in inertias.items():
        assert abs(inertia - inertias[""]) < INERTIA_TOLERANCE * inertia, (
            f"{name}: not the same clusters: {inertias}"
        )


def _inertia(points: np.ndarray, result: FitResult) -> float:
    parts = zip(np.array_split(points, 100), np.array_split(result.labels, 100), strict=True)
    return sum(float(((part - result.centers[labels]).astype(np.float64) ** 2).sum()) for part, labels in parts)


def _measure_fits_per_second(fit: Callable[[], FitResult]) -> float:
    """Return fits/s, measured for at least MIN_SECONDS because one short fit is too noisy."""
    started_at, fit_count = read_seconds(), 0
    while fit_count == 0 or read_seconds() - started_at < MIN_SECONDS:
        fit()
        fit_count += 1
    return fit_count / (read_seconds() - started_at)


def _compare_assignments(rounds: int) -> list[PairedComparison]:
    """Compare the assignment step that `fit` chooses with the others, which prune less."""
    rows = []
    for name, points, clusters in run_in_thread(lambda: list(_generate_tasks())):
        if points.nbytes <= MIN_POINT_BYTES or clusters > MAX_EXHAUSTIVE_CLUSTERS:
            continue
        centers = torch.from_numpy(_select_initial_centers(points, clusters)).unsqueeze(0)
        measure = partial(_measure_assignment, points, centers)
        rivals = {
            "Hamerly's bounds": partial(measure, lambda blocks, centers, count: HamerlyBounds(centers, count)),
            "no bounds": partial(measure, lambda *_: ExhaustiveAssignment()),
        }
        task = f"k-means {name} k={clusters}, assignment step"
        rows += run_paired_rounds(task, partial(measure, choose_assignment), rivals, rounds=rounds, unit="fits/s")
    return rows


def _measure_assignment(
    points: np.ndarray, centers: Tensor, create: Callable[[Blocks, Tensor, int], ExhaustiveAssignment]
) -> float:
    """Return fits/s with the assignment step that `create` returns."""
    started_at, blocks = read_seconds(), _split(points)
    with torch.no_grad():
        assignment = create(blocks, centers, len(points))
        sums = assign(blocks, centers, len(points), assignment)
        for _ in range(ITERATIONS):
            centers, sums = lloyd_step(blocks, centers, sums, assignment)
    return 1 / (read_seconds() - started_at)


def _compare_init_counts(rounds: int) -> list[PairedComparison]:
    """Compare ten k-means++ initializations, fitted together, with one."""
    images, iterations = run_in_thread(_load_images), 10
    blocks, count = _split(images), len(images)

    def measure_fits_per_second(n_init: int) -> float:
        torch.manual_seed(0)
        started_at = read_seconds()
        with torch.no_grad():
            centers = kmeans_plusplus(blocks, count, n_init, 10)
            assignment = choose_assignment(blocks, centers, count)
            cluster_sums = assign(blocks, centers, count, assignment)
            for _ in range(iterations):
                centers, cluster_sums = lloyd_step(blocks, centers, cluster_sums, assignment)
        return 1 / (read_seconds() - started_at)

    task = f"k-means++ and {iterations} iterations, {count:,}×784 k=10, 10 starts"
    return run_paired_rounds(
        task,
        partial(measure_fits_per_second, 10),
        {"1 start": partial(measure_fits_per_second, 1)},
        rounds=rounds,
        unit="fits/s",
    )


def _compare_memory() -> list[PairedComparison]:
    """Compare the peak memory of a fit, without the points, with the size of the points.

    One round is enough: further rounds differ by a few percent of the points' size.
    """
    rows = []
    for index, (name, points, clusters) in enumerate(_generate_tasks() if memory.can_measure() else ()):
        if points.nbytes > MIN_POINT_BYTES:
            task, size = f"k-means {name} k={clusters}, memory", [points.nbytes / 1e6]
            rows.append(
                compare(task, "the points", [run_in_new_process(_measure_fit_memory, index)], size, unit="MB")
            )
    return rows


def _measure_fit_memory(task_index: int) -> float:
    _, points, clusters = next(islice(_generate_tasks(), task_index, None))
    initial = _select_initial_centers(points, clusters)
    _fit_genexp(points[:2048].copy(), initial)  # excludes the memory that libraries allocate once
    return memory.measure_peak_megabytes(partial(_fit_genexp, points, initial))
