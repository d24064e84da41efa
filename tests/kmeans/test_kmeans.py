"""k-means against scikit-learn's, and what it keeps to whatever the points."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as Rival
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
from tests.support.command import genexp, in_folder, metrics, status
from tests.support.compose import composed

BLOCK = 500


def points_of(name: str, *overrides: str) -> Tensor:
    """Return a data set's training points (samples, features)."""
    streams = load_dataset(composed("model=kmeans", f"dataset={name}", *overrides).dataset).train.streams
    stream = streams["point"] if "point" in streams else streams["image"]
    assert isinstance(stream, Tensor)
    return stream.flatten(1) / 255 if stream.dtype == torch.uint8 else stream


def inertia_of(points: Tensor, centers: Tensor) -> float:
    """Return the inertia in float64, from centers (clusters, features)."""
    return float(torch.cdist(points.double(), centers.double()).amin(1).square().sum())


def seeded_points(count: int, features: int) -> Tensor:
    """Return points of a few clumps of different width."""
    generator = torch.Generator().manual_seed(1)
    clumps = torch.randn(7, features, generator=generator) * 4
    chosen = torch.randint(7, (count,), generator=generator)
    return clumps[chosen] + torch.randn(count, features, generator=generator) * (1 + chosen[:, None] / 3)


@pytest.mark.parametrize(("name", "clusters"), [("circles", 2), ("blobs", 4), ("digits", 10), ("mnist_5k", 10)])
def test_ends_where_scikit_learn_ends(name: str, clusters: int) -> None:
    points = points_of(name)
    generator = torch.Generator().manual_seed(0)
    initial = points[torch.randperm(len(points), generator=generator)[:clusters]]
    rival = Rival(clusters, init=initial.numpy(), n_init=1, max_iter=300, tol=0).fit(points.numpy())
    ours, labels = fit(points.split(BLOCK), len(points), initial.unsqueeze(0), max_iter=300)
    assert inertia_of(points, ours) == pytest.approx(rival.inertia_, rel=1e-3)
    assert torch.equal(labels.long(), nearest_center(points, ours))


def test_the_command_ends_where_scikit_learn_ends(tmp_path: Path) -> None:
    points = points_of("digits")
    initial = points[:10].numpy()
    np.save(tmp_path / "centers.npy", initial)
    rival = Rival(10, init=initial, n_init=1, max_iter=300, tol=0).fit(points.numpy())
    given = f"model.init='{tmp_path / 'centers.npy'}'"
    quiet = ("trainer.preview_every=0", "trainer.evaluate_every=0", "model.tolerance=0", "model.clusters=10")
    ended = genexp("model=kmeans", "dataset=digits", given, *quiet, in_folder(tmp_path / "run"))
    assert ended.code == 0, ended.err
    last = [line for line in metrics(tmp_path / "run") if line["split"] == "train"][-1]
    assert last["inertia"] == pytest.approx(rival.inertia_, rel=1e-3)
    assert last["shift"] == 0


def test_far_from_zero_no_digits_are_lost(tmp_path: Path) -> None:
    points = seeded_points(600, 3)
    far = points + 3e4
    generator = torch.Generator().manual_seed(0)
    initial = torch.randperm(600, generator=generator)[:7]
    here, _ = fit(points.split(BLOCK), 600, points[initial][None], 100)
    shifted = (far - far.mean(0)).split(BLOCK)  # as the technique hands them over
    there, _ = fit(shifted, 600, (far[initial] - far.mean(0))[None], 100)
    assert inertia_of(far, there + far.mean(0)) == pytest.approx(inertia_of(points, here), rel=1e-2)
    assert moments(far.split(70)).variance == pytest.approx(
        float(far.double().var(0, correction=0).mean()), rel=1e-4
    )


@pytest.mark.parametrize(("features", "starts", "clusters"), [(2, 1, 9), (2, 3, 9), (40, 1, 9), (40, 2, 9)])
def test_bounds_spare_comparisons_and_change_nothing(
    features: int, starts: int, clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = seeded_points(4000, features)
    torch.manual_seed(0)
    here = there = random_points([points], 4000, num_starts=starts, num_clusters=clusters)
    bounded, plain = assign([points], here, 4000), assign([points], there, 4000)
    compared = counted(monkeypatch, CenterScores, "__call__", lambda _, some, out: len(some))
    for _ in range(40):
        here, bounded = lloyd_step([points], here, bounded)
        spent = sum(compared)
        there, plain = lloyd_step([points], there, replace(plain, changed_fraction=1.0, bounds=None))
        compared[:] = [spent]
        assert torch.equal(here, there)
        assert torch.equal(bounded.labels, plain.labels)
    assert spent < 0.6 * 40 * 4000


@pytest.mark.parametrize(("starts", "clusters"), [(1, 10), (1, 100), (6, 10)])
def test_projections_spare_comparisons(starts: int, clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = points_of("mnist_5k")
    torch.manual_seed(0)
    centers = random_points([points], len(points), num_starts=starts, num_clusters=clusters)
    compared = counted(
        monkeypatch, pruned_assignment, "pair_products", lambda points, _, pairs: len(pairs.rows) * len(points[0])
    )
    screened_as_if_all_were_compared(points, centers, 20)
    assert 0 < sum(compared) < 0.2 * 20 * points.numel() * starts * clusters


def test_bounds_spare_even_the_look_at_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    points = points_of("mnist_5k")
    torch.manual_seed(0)
    centers = random_points([points], len(points), num_starts=1, num_clusters=10)
    totals = assign([points], centers, len(points))
    looked = counted(
        monkeypatch, pruned_assignment.PrunedAssignment, "_find_candidates", lambda _, some, *others: len(some)
    )
    for _ in range(30):
        centers, totals = lloyd_step([points], centers, totals)
    assert len(points) < sum(looked) < 0.6 * 30 * len(points)


def test_what_no_subspace_shows_is_compared_with_all_centers(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(3000, 400, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    centers = random_points([points], 3000, num_starts=1, num_clusters=50)
    wholly = counted(
        monkeypatch,
        pruned_assignment.PrunedAssignment,
        "_find_candidates_exhaustively",
        lambda _, block, place: len(block),
    )
    screened_as_if_all_were_compared(points, centers, 6)
    assert sum(wholly) > 0.9 * 2 * 6 * 3000


@pytest.mark.parametrize("size", [1, 1e13])  # whose square is far from an overflow, but not its cube
def test_points_within_a_subspace_and_some_beside_it(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 5, generator=generator) @ torch.randn(5, 400, generator=generator)
    points[::100] += torch.randn(30, 400, generator=generator)
    points *= size
    torch.manual_seed(0)
    screened_as_if_all_were_compared(points, random_points([points], 3000, num_starts=2, num_clusters=40), 12)


@pytest.mark.parametrize("magnitudes", [0, 15])  # of ten, in which the sizes of points differ, up and down
def test_projections_never_make_a_center_seem_farther_than_it_is(magnitudes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 12, generator=generator) @ torch.randn(12, 400, generator=generator)
    points[1500:] += 0.1 * torch.randn(1500, 400, generator=generator)  # the others lie in the subspace
    points *= 10 ** torch.empty(3000, 1).uniform_(-magnitudes, magnitudes, generator=generator)
    points[-1] = 0
    projections = ProjectionBounds.from_blocks([points], points[None, :3], 3000)
    projections.set_projections(points)
    inner = points.double() @ points[:200].double().T
    lengths = points.double().norm(dim=1).clamp(min=1e-30)
    seeming = projections.dequantize().double() @ projections.project(points[:200]).double().T
    least = (seeming - inner) / (lengths[:, None] * lengths[:200])
    assert least.min() > -1e-6
    assert magnitudes or least[:1500].mean() < 2e-4  # and not much nearer


def test_a_gpu_is_given_more_at_a_time_than_a_cache_holds() -> None:
    here, there = torch.empty(0), torch.empty(0, device="meta")
    assert get_chunk_size(2**20, 1024, here) == 2**10
    assert get_chunk_size(2**20, 1024, there) == 2**16
    assert get_chunk_size(2**20, 2**21, here) == 1


def test_the_sample_for_projections_does_not_keep_the_points() -> None:
    """Blocks that are made as they are read would otherwise all be held: the whole data."""
    made: list[weakref.ref[Tensor]] = []

    class Made:
        def __iter__(self) -> Iterator[Tensor]:
            for number in range(30):
                block = torch.full((100, 400), float(number))
                made.append(weakref.ref(block))
                yield block
                del block
                assert sum(ref() is not None for ref in made) <= 1

    projections = ProjectionBounds.from_blocks(Made(), torch.zeros(1, 3, 400), 3000)
    assert len(made) == 30
    assert projections.basis.shape == (400, 16)


def test_few_points_of_many_features_are_not_projected() -> None:
    points = torch.randn(9, 2**18, generator=torch.Generator().manual_seed(0))
    centers = random_points([points], 9, num_starts=1, num_clusters=3)
    _, totals = lloyd_step([points], centers, assign([points], centers, 9))
    assert not isinstance(totals.bounds, ProjectionBounds)


@pytest.mark.parametrize("starts", [1, 3])
def test_few_points_go_where_many_would(starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, blocks = seeded_points(400, 5), seeded_points(400, 5).split(150)
    torch.manual_seed(0)
    centers = random_points([points], 400, num_starts=starts, num_clusters=6)
    centers[-1, :2] = 1e3  # these clusters run empty
    assert is_small_problem(centers, 400)
    here, few = lloyd_step(blocks, centers, assign(blocks, centers, 400))
    monkeypatch.setattr("genexp.kmeans.lloyd.is_small_problem", lambda *_: False)
    there, many = lloyd_step(blocks, centers, assign(blocks, centers, 400))
    torch.testing.assert_close(here, there)
    torch.testing.assert_close(few.sums, many.sums)
    assert torch.equal(few.counts, many.counts)
    assert torch.equal(few.labels, many.labels)
    assert (few.labels.dtype, few.counts.dtype) == (many.labels.dtype, many.counts.dtype)
    assert many.counts.sum(1).tolist() == [400] * starts


@pytest.mark.parametrize("iterations", [0, 1, 4, 100])
@pytest.mark.parametrize("empty", [0, 2])
def test_a_fit_of_few_points_ends_where_one_of_many_does(
    iterations: int, empty: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = seeded_points(400, 5)
    torch.manual_seed(0)
    centers = random_points([points], 400, num_starts=3, num_clusters=6)
    centers[-1, :empty] = 1e3  # these clusters run empty
    here, few = fit(points.split(150), 400, centers, iterations)
    monkeypatch.setattr("genexp.kmeans.lloyd.is_small_problem", lambda *_: False)
    there, many = fit(points.split(150), 400, centers, iterations)
    torch.testing.assert_close(here, there)
    assert torch.equal(few, many)


def test_few_points_are_gathered_once() -> None:
    points = seeded_points(90, 5)
    centers = random_points([points], 90, num_starts=2, num_clusters=4)
    totals = assign([points], centers, 90)
    nothing_read, known = lloyd_step((), centers, totals)
    read, anew = lloyd_step([points], centers, replace(totals, bounds=None))
    assert torch.equal(nothing_read, read)
    assert torch.equal(known.sums, anew.sums)
    assert torch.equal(known.labels, anew.labels)


@pytest.mark.parametrize("count", [8, 9000])  # few points, and more
@pytest.mark.parametrize("clusters", [6, 40])  # short rows of distances, and long ones
def test_a_point_as_near_to_several_centers_goes_to_the_first(count: int, clusters: int) -> None:
    points = torch.zeros(count, 2)
    centers = torch.full((2, clusters, 2), 3.0)
    centers[0, 2:5], centers[1, 4:6] = 1, 1
    totals = assign([points], centers, count)
    assert is_small_problem(centers, count) == (count == 8)
    assert totals.labels.unique(dim=1).tolist() == [[2], [4]]
    assert totals.counts[0, 2] == totals.counts[1, 4] == count
    assert nearest_center(points, centers[1]).unique().tolist() == [4]


def test_clusters_that_run_empty_are_screened_too() -> None:
    points = points_of("mnist_5k")
    centers = torch.rand(2, 30, 784, generator=torch.Generator().manual_seed(0))  # far from nearly all points
    assert (assign([points], centers, len(points)).counts == 0).any()
    screened_as_if_all_were_compared(points, centers, 12)


def screened_as_if_all_were_compared(points: Tensor, centers: Tensor, iterations: int) -> None:
    """Iterate with and without what is known from before: the same bits, and each point at its nearest center."""
    blocks, count = points.split(700), len(points)
    known, anew = assign(blocks, centers, count), assign(blocks, centers, count)
    here = there = centers
    for _ in range(iterations):
        here, known = lloyd_step(blocks, here, known)
        there, anew = lloyd_step(blocks, there, replace(anew, bounds=None))
        assert isinstance(known.bounds, ProjectionBounds)
        assert torch.equal(here, there)
        assert torch.equal(known.labels, anew.labels)
        for start, labels in zip(here, known.labels, strict=True):
            distances = torch.cdist(points.double(), start.double()).square()
            excess = distances.gather(1, labels.long().unsqueeze(1)).squeeze(1) - distances.amin(1)
            scale = points.double().square().sum(1) + start.double().square().sum(1).max()
            assert (excess <= 1e-6 * scale).all()


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, cost: Callable[..., int]) -> list[int]:
    """Return a list that gets the cost of each call of a function, from its arguments."""
    function, costs = getattr(owner, name), []

    def counting(*args: object) -> object:
        costs.append(cost(*args))
        return function(*args)

    monkeypatch.setattr(owner, name, counting)
    return costs


def test_centers_that_lie_together_do_not_take_points_from_each_other() -> None:
    points = points_of("mnist_5k")
    torch.manual_seed(0)  # of all choices, a few have a point as near to two centers as rounding can tell
    centers = random_points([points], len(points), num_starts=1, num_clusters=40).repeat(
        1, 2, 1
    )  # each of them twice
    totals = assign([points], centers, len(points))
    labels = totals.labels.clone()
    assert (labels < 40).all()
    for _ in range(3):
        update = ClusterSumsUpdater(totals, centers)
        finder = pruned_assignment.PrunedAssignment(centers, totals, centers, update, [points])
        finder.assign_block(points, slice(0, len(points)))
        totals = update.build_cluster_sums([], finder.bounds)
        assert torch.equal(totals.labels, labels)


def test_sums_follow_the_points() -> None:
    points = seeded_points(3000, 6)
    centers = random_points([points], 3000, num_starts=2, num_clusters=20)
    totals = assign(points.split(100), centers, 3000)
    for _ in range(30):
        centers, totals = lloyd_step(points.split(100), centers, totals)
    for start in range(2):
        labels = totals.labels[start].long()
        sums = torch.zeros(20, 6, dtype=torch.double).index_add_(0, labels, points.double())
        torch.testing.assert_close(totals.sums[start], sums, rtol=1e-9, atol=1e-9)
        assert torch.equal(totals.counts[start], labels.bincount(minlength=20))


def test_every_point_gets_its_nearest_center() -> None:
    points, centers = seeded_points(900, 20), seeded_points(64, 20)
    exact = torch.cdist(points.double(), centers.double())
    assert torch.equal(nearest_center(points, centers), exact.argmin(1))


def test_blocks_do_not_matter() -> None:
    points = seeded_points(1000, 5)
    centers = points[:12].unflatten(0, (2, 6))
    whole, parts = assign([points], centers, 1000), assign(points.split(37), centers, 1000)
    assert torch.equal(whole.counts, parts.counts)
    torch.testing.assert_close(whole.sums, parts.sums, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        whole.inertia_without_norms(centers), parts.inertia_without_norms(centers), rtol=1e-5, atol=1e-2
    )


def test_starts_do_not_touch_each_other() -> None:
    points = seeded_points(400, 3)
    blocks = points.split(90)
    starts = random_points(blocks, 400, num_starts=4, num_clusters=5)
    together, totals = lloyd_step(blocks, starts, assign(blocks, starts, 400))
    for start in range(4):
        own_start = starts[start : start + 1]
        alone, own = lloyd_step(blocks, own_start, assign(blocks, own_start, 400))
        torch.testing.assert_close(together[start], alone[0])
        assert torch.equal(totals.counts[start], own.counts[0])


def test_inertia_never_rises() -> None:
    points = points_of("digits")
    blocks = points.split(BLOCK)
    centers = random_points(blocks, len(points), num_starts=3, num_clusters=10)
    totals = assign(blocks, centers, len(points))
    for _ in range(20):
        before = totals.inertia_without_norms(centers)
        centers, totals = lloyd_step(blocks, centers, totals)
        assert (totals.inertia_without_norms(centers) <= before + 1e-6 * before.abs()).all()


def test_empty_clusters_are_moved_to_the_farthest_points() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [30.0], [50.0]])
    centers = torch.tensor([[[1.0], [1000.0], [2000.0]]])
    blocks = points.split(2)
    filled = relocate_empty_clusters(assign(blocks, centers, 5), centers, blocks)
    assert filled.counts.tolist() == [[3, 1, 1]]
    assert filled.means(centers).squeeze().tolist() == [1.0, 50.0, 30.0]


def test_more_empty_clusters_than_points_stay_where_they_are() -> None:
    points, centers = torch.zeros(1, 2), torch.arange(8.0).view(1, 4, 2)
    filled = relocate_empty_clusters(assign([points], centers, 1), centers, [points])
    assert filled.counts.sum() == 1
    assert filled.means(centers).isfinite().all()


def test_duplicates_leave_no_nan() -> None:
    points = torch.ones(50, 2)
    centers = kmeans_plusplus(points.split(20), 50, num_starts=2, num_clusters=4)
    assert torch.equal(centers, torch.ones(2, 4, 2))
    assert torch.equal(fit(points.split(20), 50, centers, 10)[0], torch.ones(4, 2))


def test_plus_plus_starts_as_well_as_scikit_learn_does() -> None:
    from sklearn.cluster import kmeans_plusplus as sklearn_plusplus

    points = points_of("digits")
    torch.manual_seed(0)
    ours = kmeans_plusplus(points.split(BLOCK), len(points), num_starts=20, num_clusters=10)
    mean = np.mean([inertia_of(points, centers) for centers in ours])
    rivals = [sklearn_plusplus(points.numpy(), 10, random_state=seed)[0] for seed in range(20)]
    assert mean == pytest.approx(np.mean([inertia_of(points, torch.tensor(rival)) for rival in rivals]), rel=0.03)
    known = {tuple(point) for point in points.tolist()}
    assert all(tuple(center) in known for center in ours.flatten(0, 1).tolist())


def test_plus_plus_draws_in_proportion_to_the_squared_distance() -> None:
    """With two clusters and all candidates alike, the second center's distribution is known."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    torch.manual_seed(0)
    centers = kmeans_plusplus(points.split(2), 3, num_starts=4000, num_clusters=2)
    from_origin = centers[(centers[:, 0] == 0).all(1)]
    # Of two candidates the better is kept: the far one leaves 1, the near one 4. Near only if drawn twice.
    near = (from_origin[:, 1] == points[1]).all(1).float().mean()
    assert float(near) == pytest.approx((1 / 5) ** 2, abs=0.015)


def test_take_returns_points_in_the_order_asked_for() -> None:
    points = torch.arange(20.0).view(10, 2)
    assert torch.equal(take(points.split(3), torch.tensor([7, 0, 9, 3, 3])), points[[7, 0, 9, 3, 3]])


def run(tmp_path: Path, *overrides: str) -> Path:
    """Run k-means and return the run's folder."""
    folder = tmp_path / "run"
    ended = genexp("model=kmeans", "device=cpu", "device.threads=1", *overrides, in_folder(folder))
    assert ended.code == 0, ended.err
    return folder


def test_the_reference_leaves_a_scatter_and_its_gif(tmp_path: Path) -> None:
    folder = run(tmp_path, "experiment=kmeans_reference")
    assert (folder / "clusters.gif").is_file()
    assert (folder / "figures" / "assignment.png").is_file()
    assert status(folder)["step"] == 5


def test_our_recipe_beats_the_reference(tmp_path: Path) -> None:
    quiet = ("trainer.preview_every=0",)
    ours = run(tmp_path / "ours", "experiment=kmeans", *quiet)
    reference = run(tmp_path / "reference", "experiment=kmeans_reference", *quiet)
    inertia = [metrics(folder)[-2]["inertia"] for folder in (ours, reference)]
    assert inertia[0] < inertia[1]
    assert status(ours)["step"] < 300, "it did not stop when it had converged"


def test_batches_come_near_to_the_whole(tmp_path: Path) -> None:
    few = ("dataset=digits", "model.clusters=10", "model.n_init=3", "trainer.preview_every=0")
    whole = run(tmp_path / "whole", *few)
    parts = run(tmp_path / "parts", *few, "trainer.batch_size=128", "trainer.epochs=10")
    scores = [status(folder)["test"]["inertia_per_point"] for folder in (whole, parts)]
    assert scores[1] == pytest.approx(scores[0], rel=0.05)
    assert {"acc", "nmi", "ari"} <= set(status(parts)["test"])


def test_images_show_their_centers(tmp_path: Path) -> None:
    folder = run(
        tmp_path, "dataset=mnist_5k", "dataset.limit=200", "model.clusters=5", "model.init=uniform",
        "model.n_init=2", "trainer.epochs=3",
    )  # fmt: skip
    assert (folder / "centers.gif").is_file()
    assert (folder / "figures" / "clusters.png").is_file()
    assert np.isfinite(status(folder)["test"]["inertia_per_point"])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.clusters=600", "model.clusters=600 exceeds the 500 points; lower it or choose a larger data set"),
        ("model.init=kmeans", "model.init=kmeans: choose one of k-means++, random, uniform"),
        ("model.init=/nowhere/centers.npy", "model.init=/nowhere/centers.npy cannot be read as centers"),
        ("model.init_samples=1", "model.init_samples=1: use at least model.clusters"),
    ],
)
def test_errors_name_key_value_and_remedy(override: str, complaint: str, tmp_path: Path) -> None:
    ended = genexp("model=kmeans", override, in_folder(tmp_path / "run"))
    assert ended.code == 1
    assert complaint in ended.err
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("centers", "complaint"),
    [
        (np.zeros((3, 2)), "has shape (3, 2)"),
        (np.array([[0, 1], [np.nan, 1]]), "holds NaN or infinite numbers; give a file of finite ones"),
    ],
)
def test_files_of_unfit_centers_are_refused(centers: np.ndarray, complaint: str, tmp_path: Path) -> None:
    np.save(tmp_path / "centers.npy", centers)
    given = f"model.init='{tmp_path / 'centers.npy'}'"
    ended = genexp("model=kmeans", "model.clusters=2", given, in_folder(tmp_path / "run"))
    assert ended.code == 1
    assert complaint in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_many_features_are_flattened_to_their_widest_plane() -> None:
    plane = torch.randn(200, 2) * torch.tensor([5.0, 2.0])
    turned = torch.linalg.qr(torch.randn(6, 6)).Q[:2]  # (2, 6)
    points, _ = project_pca(plane @ turned + 7, torch.zeros(1, 6))
    torch.testing.assert_close(torch.pdist(points), torch.pdist(plane), rtol=1e-3, atol=1e-3)
    single, _ = project_pca(torch.ones(4, 1), torch.zeros(2, 1))
    assert single.shape == (4, 2)


def test_a_scatter_is_a_picture() -> None:
    picture = draw_clusters(
        torch.randn(30, 2), torch.arange(30) % 3, torch.zeros(3, 2), cluster_names=("a", "b", "c")
    )
    assert picture.shape[0] == 3
    assert 0 <= float(picture.min()) < float(picture.max()) <= 1


def test_totals_of_an_empty_cluster_keep_its_center() -> None:
    totals = ClusterSums.unassigned(torch.zeros(1, 1, 2), 3)
    assert torch.equal(totals.means(torch.full((1, 1, 2), 3.0)), torch.full((1, 1, 2), 3.0))
