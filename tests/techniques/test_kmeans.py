"""Runs of k-means: results, presets, files and errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from torch import Tensor

from genexp.data.dataset import DataSpec
from genexp.kmeans.projection_bounds import ProjectionBounds
from genexp.technique import Clock
from genexp.techniques.kmeans import KMeans, KMeansConfig
from tests.support.command import format_run_dir_override, load_status, read_metrics_log, run_genexp
from tests.support.kmeans import load_points, record_call_costs


def test_run_matches_scikit_learn(tmp_path: Path) -> None:
    points = load_points("digits")
    initial = points[:10].numpy()
    np.save(tmp_path / "centers.npy", initial)
    reference = SklearnKMeans(10, init=initial, n_init=1, max_iter=300, tol=0).fit(points.numpy())
    override = f"model.init='{tmp_path / 'centers.npy'}'"
    no_previews = ("trainer.preview_every=0", "trainer.evaluate_every=0", "model.tolerance=0", "model.clusters=10")
    result = run_genexp(
        "model=kmeans", "dataset=digits", override, *no_previews, format_run_dir_override(tmp_path / "run")
    )
    assert result.exit_code == 0, result.stderr
    last = [line for line in read_metrics_log(tmp_path / "run") if line["split"] == "train"][-1]
    assert last["inertia"] == pytest.approx(reference.inertia_, rel=1e-3)
    assert last["shift"] == 0


def run_kmeans(tmp_path: Path, *overrides: str) -> Path:
    """Run k-means and return the run directory."""
    folder = tmp_path / "run"
    result = run_genexp(
        "model=kmeans", "device=cpu", "device.threads=1", *overrides, format_run_dir_override(folder)
    )
    assert result.exit_code == 0, result.stderr
    return folder


def test_reference_preset_writes_a_scatter_plot_and_a_gif(tmp_path: Path) -> None:
    folder = run_kmeans(tmp_path, "experiment=kmeans_reference")
    assert (folder / "clusters.gif").is_file()
    assert (folder / "figures" / "clusters.png").is_file()
    assert load_status(folder)["step"] == 5


def test_default_preset_beats_the_reference_preset(tmp_path: Path) -> None:
    no_previews = ("trainer.preview_every=0",)
    ours = run_kmeans(tmp_path / "ours", "experiment=kmeans", *no_previews)
    reference = run_kmeans(tmp_path / "reference", "experiment=kmeans_reference", *no_previews)
    inertia = [read_metrics_log(folder)[-2]["inertia"] for folder in (ours, reference)]
    assert inertia[0] < inertia[1]
    assert load_status(ours)["step"] < 300, "the run did not stop at convergence"


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
        (
            "model.clusters=600",
            "model.clusters=600: exceeds the 500 training points. Use a smaller value, or a larger data set.",
        ),
        ("model.init=kmeans", "model.init=kmeans: must be one of k-means++, random, uniform"),
        ("model.init=/nowhere/centers.npy", "model.init=/nowhere/centers.npy: not a file"),
        ("model.init_samples=1", "model.init_samples=1: must be at least model.clusters"),
    ],
)
def test_errors_report_key_value_and_remedy(override: str, message: str, tmp_path: Path) -> None:
    result = run_genexp("model=kmeans", override, format_run_dir_override(tmp_path / "run"))
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("centers", "message"),
    [
        (np.zeros((3, 2)), "has shape (3, 2)"),
        (np.array([[0, 1], [np.nan, 1]]), "contains NaN or infinity. Use a file of finite numbers"),
    ],
)
def test_invalid_center_files_are_rejected(centers: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "centers.npy", centers)
    override = f"model.init='{tmp_path / 'centers.npy'}'"
    result = run_genexp("model=kmeans", "model.clusters=2", override, format_run_dir_override(tmp_path / "run"))
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def build_technique(points: Tensor) -> KMeans:
    """Return k-means with three starts of 20 clusters for points (points, features)."""
    config = KMeansConfig(clusters=20, init="random", n_init=3, init_samples=None, tolerance=1e-4, batch_size=None)
    return KMeans(config, DataSpec("points", {"point": tuple(points.shape[1:])}, len(points)))


@pytest.mark.parametrize("offset", [0.0, 10.0])  # 10: the points' mean is subtracted
def test_bounds_that_a_resumed_run_lacks_change_no_bit(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    points = load_points("mnist_5k") + offset
    batches = [{"point": part} for part in points.split(3000)]
    torch.manual_seed(0)
    straight = build_technique(points)
    straight.initialize(batches)
    assert bool(straight.origin.any()) == (offset > 0)
    screened = record_call_costs(monkeypatch, ProjectionBounds, "_screen", lambda _, rows, *others: len(rows))
    for step in range(1, 41):
        resumed = build_technique(points)
        resumed.load_state_dict({name: value.clone() for name, value in straight.state_dict().items()})
        screened.clear()
        metrics = straight.lloyd_step(batches, Clock(step, 40, 1))
        skipped = 1 - sum(screened) / len(points)
        assert torch.equal(resumed.lloyd_step(batches, Clock(step, 40, 1))["inertia"], metrics["inertia"])
        for name, value in resumed.state_dict().items():
            assert torch.equal(value, straight.state_dict()[name]), name
    assert skipped > 0.3, "bounds of the last steps skipped few points"


def test_a_loaded_state_discards_the_bounds_of_another() -> None:
    points = load_points("mnist_5k")
    batches = [{"point": points}]
    torch.manual_seed(0)
    technique, other = build_technique(points), build_technique(points)
    technique.initialize(batches)
    other.initialize(batches)  # other random centers
    for step in range(1, 6):
        technique.lloyd_step(batches, Clock(step, 40, 1))
    technique.load_state_dict({name: value.clone() for name, value in other.state_dict().items()})
    technique.lloyd_step(batches, Clock(1, 40, 1))
    other.lloyd_step(batches, Clock(1, 40, 1))
    assert torch.equal(technique.labels, other.labels)
    assert torch.equal(technique.centers, other.centers)
