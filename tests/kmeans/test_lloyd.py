"""k-means against scikit-learn's, and what it keeps to whatever the points."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from torch import Tensor

from genexp.data import load_dataset
from genexp.images.scatter import draw_clusters, project_pca
from genexp.kmeans import pruned_assignment
from genexp.kmeans.blocks import get_chunk_size, moments, take
from genexp.kmeans.cluster_sums import ClusterSums, ClusterSumsUpdater
from genexp.kmeans.distances import CenterScores, nearest_center
from genexp.kmeans.init import kmeans_plusplus, random_points
from genexp.kmeans.lloyd import assign, fit, lloyd_step, relocate_empty_clusters
from genexp.kmeans.projection_bounds import ProjectionBounds
from genexp.kmeans.small_problem import is_small_problem
from tests.support.command import load_status, read_metrics_log, run_dir_override, run_genexp
from tests.support.compose import compose_config

BLOCK_ROWS = 500


def load_points(name: str, *overrides: str) -> Tensor:
    """Return a data set's training points (samples, features)."""
    streams = load_dataset(compose_config("model=kmeans", f"dataset={name}", *overrides).dataset).train.streams
    stream = streams["point"] if "point" in streams else streams["image"]
    assert isinstance(stream, Tensor)
    return stream.flatten(1) / 255 if stream.dtype == torch.uint8 else stream


def compute_inertia(points: Tensor, centers: Tensor) -> float:
    """Return the inertia in float64, from centers (clusters, features)."""
    return float(torch.cdist(points.double(), centers.double()).amin(1).square().sum())


def make_points(count: int, features: int) -> Tensor:
    """Return points of a few clumps of different width."""
    generator = torch.Generator().manual_seed(1)
    cluster_means = torch.randn(7, features, generator=generator) * 4
    labels = torch.randint(7, (count,), generator=generator)
    return cluster_means[labels] + torch.randn(count, features, generator=generator) * (1 + labels[:, None] / 3)


@pytest.mark.parametrize(("name", "clusters"), [("circles", 2), ("blobs", 4), ("digits", 10), ("mnist_5k", 10)])
def test_fit_matches_scikit_learn(name: str, clusters: int) -> None:
    points = load_points(name)
    generator = torch.Generator().manual_seed(0)
    initial = points[torch.randperm(len(points), generator=generator)[:clusters]]
    reference = SklearnKMeans(clusters, init=initial.numpy(), n_init=1, max_iter=300, tol=0).fit(points.numpy())
    ours, labels = fit(points.split(BLOCK_ROWS), len(points), initial.unsqueeze(0), max_iter=300)
    assert compute_inertia(points, ours) == pytest.approx(reference.inertia_, rel=1e-3)
    assert torch.equal(labels.long(), nearest_center(points, ours))


def test_run_matches_scikit_learn(tmp_path: Path) -> None:
    points = load_points("digits")
    initial = points[:10].numpy()
    np.save(tmp_path / "centers.npy", initial)
    reference = SklearnKMeans(10, init=initial, n_init=1, max_iter=300, tol=0).fit(points.numpy())
    override = f"model.init='{tmp_path / 'centers.npy'}'"
    no_previews = ("trainer.preview_every=0", "trainer.evaluate_every=0", "model.tolerance=0", "model.clusters=10")
    result = run_genexp(
        "model=kmeans", "dataset=digits", override, *no_previews, run_dir_override(tmp_path / "run")
    )
    assert result.exit_code == 0, result.stderr
    last = [line for line in read_metrics_log(tmp_path / "run") if line["split"] == "train"][-1]
    assert last["inertia"] == pytest.approx(reference.inertia_, rel=1e-3)
    assert last["shift"] == 0


def test_fit_is_accurate_far_from_the_origin(tmp_path: Path) -> None:
    points = make_points(600, 3)
    far = points + 3e4
    generator = torch.Generator().manual_seed(0)
    initial = torch.randperm(600, generator=generator)[:7]
    centers, _ = fit(points.split(BLOCK_ROWS), 600, points[initial][None], 100)
    shifted = (far - far.mean(0)).split(BLOCK_ROWS)  # as the technique hands them over
    far_centers, _ = fit(shifted, 600, (far[initial] - far.mean(0))[None], 100)
    assert compute_inertia(far, far_centers + far.mean(0)) == pytest.approx(
        compute_inertia(points, centers), rel=1e-2
    )
    assert moments(far.split(70)).variance == pytest.approx(
        float(far.double().var(0, correction=0).mean()), rel=1e-4
    )


@pytest.mark.parametrize(("features", "starts", "clusters"), [(2, 1, 9), (2, 3, 9), (40, 1, 9), (40, 2, 9)])
def test_hamerly_bounds_save_comparisons_without_changing_the_result(
    features: int, starts: int, clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(4000, features)
    torch.manual_seed(0)
    bounded_centers = plain_centers = random_points([points], 4000, num_starts=starts, num_clusters=clusters)
    bounded, plain = assign([points], bounded_centers, 4000), assign([points], plain_centers, 4000)
    comparisons = record_call_costs(monkeypatch, CenterScores, "__call__", lambda _, some, out: len(some))
    for _ in range(40):
        bounded_centers, bounded = lloyd_step([points], bounded_centers, bounded)
        num_comparisons = sum(comparisons)
        plain_centers, plain = lloyd_step(
            [points], plain_centers, replace(plain, changed_fraction=1.0, bounds=None)
        )
        comparisons[:] = [num_comparisons]
        assert torch.equal(bounded_centers, plain_centers)
        assert torch.equal(bounded.labels, plain.labels)
    assert num_comparisons < 0.6 * 40 * 4000


@pytest.mark.parametrize(("starts", "clusters"), [(1, 10), (1, 100), (6, 10)])
def test_projection_bounds_save_comparisons(starts: int, clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = load_points("mnist_5k")
    torch.manual_seed(0)
    centers = random_points([points], len(points), num_starts=starts, num_clusters=clusters)
    comparisons = record_call_costs(
        monkeypatch, pruned_assignment, "pair_products", lambda points, _, pairs: len(pairs.rows) * len(points[0])
    )
    assert_pruning_is_exact(points, centers, 20)
    assert 0 < sum(comparisons) < 0.2 * 20 * points.numel() * starts * clusters


def test_hamerly_bounds_skip_projection_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    points = load_points("mnist_5k")
    torch.manual_seed(0)
    centers = random_points([points], len(points), num_starts=1, num_clusters=10)
    cluster_sums = assign([points], centers, len(points))
    projected_rows = record_call_costs(
        monkeypatch, pruned_assignment.PrunedAssignment, "_find_candidates", lambda _, some, *others: len(some)
    )
    for _ in range(30):
        centers, cluster_sums = lloyd_step([points], centers, cluster_sums)
    assert len(points) < sum(projected_rows) < 0.6 * 30 * len(points)


def test_points_without_a_low_rank_subspace_are_compared_with_all_centers(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(3000, 400, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    centers = random_points([points], 3000, num_starts=1, num_clusters=50)
    compared_rows = record_call_costs(
        monkeypatch,
        pruned_assignment.PrunedAssignment,
        "_find_candidates_exhaustively",
        lambda _, block, place: len(block),
    )
    assert_pruning_is_exact(points, centers, 6)
    assert sum(compared_rows) > 0.9 * 2 * 6 * 3000


@pytest.mark.parametrize("size", [1, 1e13])  # whose square is far from an overflow, but not its cube
def test_pruning_is_exact_for_points_inside_and_outside_a_subspace(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 5, generator=generator) @ torch.randn(5, 400, generator=generator)
    points[::100] += torch.randn(30, 400, generator=generator)
    points *= size
    torch.manual_seed(0)
    assert_pruning_is_exact(points, random_points([points], 3000, num_starts=2, num_clusters=40), 12)


@pytest.mark.parametrize("num_magnitudes", [0, 15])  # of ten, in which the sizes of points differ, up and down
def test_projection_bounds_are_lower_bounds(num_magnitudes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 12, generator=generator) @ torch.randn(12, 400, generator=generator)
    points[1500:] += 0.1 * torch.randn(1500, 400, generator=generator)  # the others lie in the subspace
    points *= 10 ** torch.empty(3000, 1).uniform_(-num_magnitudes, num_magnitudes, generator=generator)
    points[-1] = 0
    projections = ProjectionBounds.from_blocks([points], points[None, :3], 3000)
    projections.set_projections(points)
    inner = points.double() @ points[:200].double().T
    lengths = points.double().norm(dim=1).clamp(min=1e-30)
    estimated = projections.dequantize().double() @ projections.project(points[:200]).double().T
    error = (estimated - inner) / (lengths[:, None] * lengths[:200])
    assert error.min() > -1e-6
    assert num_magnitudes or error[:1500].mean() < 2e-4  # and not much nearer


def test_chunks_are_larger_on_a_gpu() -> None:
    cpu_tensor, meta_tensor = torch.empty(0), torch.empty(0, device="meta")
    assert get_chunk_size(2**20, 1024, cpu_tensor) == 2**10
    assert get_chunk_size(2**20, 1024, meta_tensor) == 2**16
    assert get_chunk_size(2**20, 2**21, cpu_tensor) == 1


def test_projection_bounds_do_not_keep_blocks_in_memory() -> None:
    """Blocks that are generated as they are read would otherwise all be held: the whole data."""
    block_refs: list[weakref.ref[Tensor]] = []

    class GeneratedBlocks:
        def __iter__(self) -> Iterator[Tensor]:
            for number in range(30):
                block = torch.full((100, 400), float(number))
                block_refs.append(weakref.ref(block))
                yield block
                del block
                assert sum(ref() is not None for ref in block_refs) <= 1

    projections = ProjectionBounds.from_blocks(GeneratedBlocks(), torch.zeros(1, 3, 400), 3000)
    assert len(block_refs) == 30
    assert projections.basis.shape == (400, 16)


def test_few_points_with_many_features_are_not_projected() -> None:
    points = torch.randn(9, 2**18, generator=torch.Generator().manual_seed(0))
    centers = random_points([points], 9, num_starts=1, num_clusters=3)
    _, cluster_sums = lloyd_step([points], centers, assign([points], centers, 9))
    assert not isinstance(cluster_sums.bounds, ProjectionBounds)


@pytest.mark.parametrize("starts", [1, 3])
def test_small_problem_step_equals_the_general_step(starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, blocks = make_points(400, 5), make_points(400, 5).split(150)
    torch.manual_seed(0)
    centers = random_points([points], 400, num_starts=starts, num_clusters=6)
    centers[-1, :2] = 1e3  # these clusters run empty
    assert is_small_problem(centers, 400)
    small_centers, small_sums = lloyd_step(blocks, centers, assign(blocks, centers, 400))
    monkeypatch.setattr("genexp.kmeans.lloyd.is_small_problem", lambda *_: False)
    general_centers, general_sums = lloyd_step(blocks, centers, assign(blocks, centers, 400))
    torch.testing.assert_close(small_centers, general_centers)
    torch.testing.assert_close(small_sums.sums, general_sums.sums)
    assert torch.equal(small_sums.counts, general_sums.counts)
    assert torch.equal(small_sums.labels, general_sums.labels)
    assert (small_sums.labels.dtype, small_sums.counts.dtype) == (
        general_sums.labels.dtype,
        general_sums.counts.dtype,
    )
    assert general_sums.counts.sum(1).tolist() == [400] * starts


@pytest.mark.parametrize("max_iter", [0, 1, 4, 100])
@pytest.mark.parametrize("num_empty_clusters", [0, 2])
def test_small_problem_fit_equals_the_general_fit(
    max_iter: int, num_empty_clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(400, 5)
    torch.manual_seed(0)
    centers = random_points([points], 400, num_starts=3, num_clusters=6)
    centers[-1, :num_empty_clusters] = 1e3  # these clusters run empty
    small_centers, small_labels = fit(points.split(150), 400, centers, max_iter)
    monkeypatch.setattr("genexp.kmeans.lloyd.is_small_problem", lambda *_: False)
    general_centers, general_labels = fit(points.split(150), 400, centers, max_iter)
    torch.testing.assert_close(small_centers, general_centers)
    assert torch.equal(small_labels, general_labels)


def test_small_problem_gathers_the_points_once() -> None:
    points = make_points(90, 5)
    centers = random_points([points], 90, num_starts=2, num_clusters=4)
    cluster_sums = assign([points], centers, 90)
    reused_centers, reused = lloyd_step((), centers, cluster_sums)
    recomputed_centers, recomputed = lloyd_step([points], centers, replace(cluster_sums, bounds=None))
    assert torch.equal(reused_centers, recomputed_centers)
    assert torch.equal(reused.sums, recomputed.sums)
    assert torch.equal(reused.labels, recomputed.labels)


@pytest.mark.parametrize("count", [8, 9000])  # few points, and more
@pytest.mark.parametrize("clusters", [6, 40])  # short rows of distances, and long ones
def test_ties_are_assigned_to_the_first_center(count: int, clusters: int) -> None:
    points = torch.zeros(count, 2)
    centers = torch.full((2, clusters, 2), 3.0)
    centers[0, 2:5], centers[1, 4:6] = 1, 1
    cluster_sums = assign([points], centers, count)
    assert is_small_problem(centers, count) == (count == 8)
    assert cluster_sums.labels.unique(dim=1).tolist() == [[2], [4]]
    assert cluster_sums.counts[0, 2] == cluster_sums.counts[1, 4] == count
    assert nearest_center(points, centers[1]).unique().tolist() == [4]


def test_pruning_is_exact_with_empty_clusters() -> None:
    points = load_points("mnist_5k")
    centers = torch.rand(2, 30, 784, generator=torch.Generator().manual_seed(0))  # far from nearly all points
    assert (assign([points], centers, len(points)).counts == 0).any()
    assert_pruning_is_exact(points, centers, 12)


def assert_pruning_is_exact(points: Tensor, centers: Tensor, iterations: int) -> None:
    """Iterate with and without what is known from before: the same bits, and each point at its nearest center."""
    blocks, count = points.split(700), len(points)
    pruned, exhaustive = assign(blocks, centers, count), assign(blocks, centers, count)
    pruned_centers = exhaustive_centers = centers
    for _ in range(iterations):
        pruned_centers, pruned = lloyd_step(blocks, pruned_centers, pruned)
        exhaustive_centers, exhaustive = lloyd_step(blocks, exhaustive_centers, replace(exhaustive, bounds=None))
        assert isinstance(pruned.bounds, ProjectionBounds)
        assert torch.equal(pruned_centers, exhaustive_centers)
        assert torch.equal(pruned.labels, exhaustive.labels)
        for start, labels in zip(pruned_centers, pruned.labels, strict=True):
            distances = torch.cdist(points.double(), start.double()).square()
            excess = distances.gather(1, labels.long().unsqueeze(1)).squeeze(1) - distances.amin(1)
            scale = points.double().square().sum(1) + start.double().square().sum(1).max()
            assert (excess <= 1e-6 * scale).all()


def record_call_costs(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, cost: Callable[..., int]
) -> list[int]:
    """Return a list that gets the cost of each call of a function, from its arguments."""
    function, costs = getattr(owner, name), []

    def wrapper(*args: object) -> object:
        costs.append(cost(*args))
        return function(*args)

    monkeypatch.setattr(owner, name, wrapper)
    return costs


def test_duplicate_centers_do_not_exchange_points() -> None:
    points = load_points("mnist_5k")
    torch.manual_seed(0)  # of all choices, a few have a point as near to two centers as rounding can tell
    centers = random_points([points], len(points), num_starts=1, num_clusters=40).repeat(
        1, 2, 1
    )  # each of them twice
    cluster_sums = assign([points], centers, len(points))
    labels = cluster_sums.labels.clone()
    assert (labels < 40).all()
    for _ in range(3):
        update = ClusterSumsUpdater(cluster_sums, centers)
        finder = pruned_assignment.PrunedAssignment(centers, cluster_sums, centers, update, [points])
        finder.assign_block(points, slice(0, len(points)))
        cluster_sums = update.build_cluster_sums([], finder.bounds)
        assert torch.equal(cluster_sums.labels, labels)


def test_cluster_sums_stay_exact_over_iterations() -> None:
    points = make_points(3000, 6)
    centers = random_points([points], 3000, num_starts=2, num_clusters=20)
    cluster_sums = assign(points.split(100), centers, 3000)
    for _ in range(30):
        centers, cluster_sums = lloyd_step(points.split(100), centers, cluster_sums)
    for start in range(2):
        labels = cluster_sums.labels[start].long()
        sums = torch.zeros(20, 6, dtype=torch.double).index_add_(0, labels, points.double())
        torch.testing.assert_close(cluster_sums.sums[start], sums, rtol=1e-9, atol=1e-9)
        assert torch.equal(cluster_sums.counts[start], labels.bincount(minlength=20))


def test_nearest_center_is_exact() -> None:
    points, centers = make_points(900, 20), make_points(64, 20)
    exact = torch.cdist(points.double(), centers.double())
    assert torch.equal(nearest_center(points, centers), exact.argmin(1))


def test_result_does_not_depend_on_block_size() -> None:
    points = make_points(1000, 5)
    centers = points[:12].unflatten(0, (2, 6))
    whole, parts = assign([points], centers, 1000), assign(points.split(37), centers, 1000)
    assert torch.equal(whole.counts, parts.counts)
    torch.testing.assert_close(whole.sums, parts.sums, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        whole.inertia_without_norms(centers), parts.inertia_without_norms(centers), rtol=1e-5, atol=1e-2
    )


def test_starts_are_independent() -> None:
    points = make_points(400, 3)
    blocks = points.split(90)
    starts = random_points(blocks, 400, num_starts=4, num_clusters=5)
    together, cluster_sums = lloyd_step(blocks, starts, assign(blocks, starts, 400))
    for start in range(4):
        own_start = starts[start : start + 1]
        alone, own = lloyd_step(blocks, own_start, assign(blocks, own_start, 400))
        torch.testing.assert_close(together[start], alone[0])
        assert torch.equal(cluster_sums.counts[start], own.counts[0])


def test_inertia_never_increases() -> None:
    points = load_points("digits")
    blocks = points.split(BLOCK_ROWS)
    centers = random_points(blocks, len(points), num_starts=3, num_clusters=10)
    cluster_sums = assign(blocks, centers, len(points))
    for _ in range(20):
        before = cluster_sums.inertia_without_norms(centers)
        centers, cluster_sums = lloyd_step(blocks, centers, cluster_sums)
        assert (cluster_sums.inertia_without_norms(centers) <= before + 1e-6 * before.abs()).all()


def test_empty_clusters_are_relocated_to_the_farthest_points() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [30.0], [50.0]])
    centers = torch.tensor([[[1.0], [1000.0], [2000.0]]])
    blocks = points.split(2)
    relocated = relocate_empty_clusters(assign(blocks, centers, 5), centers, blocks)
    assert relocated.counts.tolist() == [[3, 1, 1]]
    assert relocated.means(centers).squeeze().tolist() == [1.0, 50.0, 30.0]


def test_surplus_empty_clusters_keep_finite_centers() -> None:
    points, centers = torch.zeros(1, 2), torch.arange(8.0).view(1, 4, 2)
    relocated = relocate_empty_clusters(assign([points], centers, 1), centers, [points])
    assert relocated.counts.sum() == 1
    assert relocated.means(centers).isfinite().all()


def test_duplicates_leave_no_nan() -> None:
    points = torch.ones(50, 2)
    centers = kmeans_plusplus(points.split(20), 50, num_starts=2, num_clusters=4)
    assert torch.equal(centers, torch.ones(2, 4, 2))
    assert torch.equal(fit(points.split(20), 50, centers, 10)[0], torch.ones(4, 2))


def test_kmeans_plusplus_matches_scikit_learn_inertia() -> None:
    from sklearn.cluster import kmeans_plusplus as sklearn_plusplus

    points = load_points("digits")
    torch.manual_seed(0)
    ours = kmeans_plusplus(points.split(BLOCK_ROWS), len(points), num_starts=20, num_clusters=10)
    mean = np.mean([compute_inertia(points, centers) for centers in ours])
    references = [sklearn_plusplus(points.numpy(), 10, random_state=seed)[0] for seed in range(20)]
    assert mean == pytest.approx(
        np.mean([compute_inertia(points, torch.tensor(reference)) for reference in references]), rel=0.03
    )
    known = {tuple(point) for point in points.tolist()}
    assert all(tuple(center) in known for center in ours.flatten(0, 1).tolist())


def test_kmeans_plusplus_samples_by_squared_distance() -> None:
    """With two clusters and all candidates alike, the second center's distribution is known."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    torch.manual_seed(0)
    centers = kmeans_plusplus(points.split(2), 3, num_starts=4000, num_clusters=2)
    from_origin = centers[(centers[:, 0] == 0).all(1)]
    # Of two candidates the better is kept: the far one leaves 1, the near one 4. Near only if drawn twice.
    near = (from_origin[:, 1] == points[1]).all(1).float().mean()
    assert float(near) == pytest.approx((1 / 5) ** 2, abs=0.015)


def test_take_returns_points_in_the_order_of_the_indices() -> None:
    points = torch.arange(20.0).view(10, 2)
    assert torch.equal(take(points.split(3), torch.tensor([7, 0, 9, 3, 3])), points[[7, 0, 9, 3, 3]])


def run_kmeans(tmp_path: Path, *overrides: str) -> Path:
    """Run k-means and return the run's folder."""
    folder = tmp_path / "run"
    result = run_genexp("model=kmeans", "device=cpu", "device.threads=1", *overrides, run_dir_override(folder))
    assert result.exit_code == 0, result.stderr
    return folder


def test_reference_preset_writes_a_scatter_plot_and_a_gif(tmp_path: Path) -> None:
    folder = run_kmeans(tmp_path, "experiment=kmeans_reference")
    assert (folder / "clusters.gif").is_file()
    assert (folder / "figures" / "assignment.png").is_file()
    assert load_status(folder)["step"] == 5


def test_default_preset_beats_the_reference_preset(tmp_path: Path) -> None:
    no_previews = ("trainer.preview_every=0",)
    ours = run_kmeans(tmp_path / "ours", "experiment=kmeans", *no_previews)
    reference = run_kmeans(tmp_path / "reference", "experiment=kmeans_reference", *no_previews)
    inertia = [read_metrics_log(folder)[-2]["inertia"] for folder in (ours, reference)]
    assert inertia[0] < inertia[1]
    assert load_status(ours)["step"] < 300, "it did not stop when it had converged"


def test_minibatch_inertia_is_close_to_full_batch_inertia(tmp_path: Path) -> None:
    settings = ("dataset=digits", "model.clusters=10", "model.n_init=3", "trainer.preview_every=0")
    full_batch = run_kmeans(tmp_path / "whole", *settings)
    minibatch = run_kmeans(tmp_path / "parts", *settings, "trainer.batch_size=128", "trainer.epochs=10")
    scores = [load_status(folder)["test"]["inertia_per_point"] for folder in (full_batch, minibatch)]
    assert scores[1] == pytest.approx(scores[0], rel=0.05)
    assert {"acc", "nmi", "ari"} <= set(load_status(minibatch)["test"])


def test_image_datasets_write_images_of_the_centers(tmp_path: Path) -> None:
    folder = run_kmeans(
        tmp_path, "dataset=mnist_5k", "dataset.limit=200", "model.clusters=5", "model.init=uniform",
        "model.n_init=2", "trainer.epochs=3",
    )  # fmt: skip
    assert (folder / "centers.gif").is_file()
    assert (folder / "figures" / "clusters.png").is_file()
    assert np.isfinite(load_status(folder)["test"]["inertia_per_point"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.clusters=600", "model.clusters=600 exceeds the 500 points; lower it or choose a larger data set"),
        ("model.init=kmeans", "model.init=kmeans: choose one of k-means++, random, uniform"),
        ("model.init=/nowhere/centers.npy", "model.init=/nowhere/centers.npy cannot be read as centers"),
        ("model.init_samples=1", "model.init_samples=1: use at least model.clusters"),
    ],
)
def test_errors_report_key_value_and_remedy(override: str, message: str, tmp_path: Path) -> None:
    result = run_genexp("model=kmeans", override, run_dir_override(tmp_path / "run"))
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("centers", "message"),
    [
        (np.zeros((3, 2)), "has shape (3, 2)"),
        (np.array([[0, 1], [np.nan, 1]]), "holds NaN or infinite numbers; give a file of finite ones"),
    ],
)
def test_invalid_center_files_are_rejected(centers: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "centers.npy", centers)
    override = f"model.init='{tmp_path / 'centers.npy'}'"
    result = run_genexp("model=kmeans", "model.clusters=2", override, run_dir_override(tmp_path / "run"))
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_project_pca_keeps_the_plane_of_largest_variance() -> None:
    plane = torch.randn(200, 2) * torch.tensor([5.0, 2.0])
    turned = torch.linalg.qr(torch.randn(6, 6)).Q[:2]  # (2, 6)
    points, _ = project_pca(plane @ turned + 7, torch.zeros(1, 6))
    torch.testing.assert_close(torch.pdist(points), torch.pdist(plane), rtol=1e-3, atol=1e-3)
    single, _ = project_pca(torch.ones(4, 1), torch.zeros(2, 1))
    assert single.shape == (4, 2)


def test_draw_clusters_returns_an_rgb_image() -> None:
    image = draw_clusters(
        torch.randn(30, 2), torch.arange(30) % 3, torch.zeros(3, 2), cluster_names=("a", "b", "c")
    )
    assert image.shape[0] == 3
    assert 0 <= float(image.min()) < float(image.max()) <= 1


def test_means_of_an_empty_cluster_keep_its_center() -> None:
    cluster_sums = ClusterSums.unassigned(torch.zeros(1, 1, 2), 3)
    assert torch.equal(cluster_sums.means(torch.full((1, 1, 2), 3.0)), torch.full((1, 1, 2), 3.0))
