"""Fréchet distance, precision, recall, density and coverage, sliced Wasserstein distance."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import Tensor

from genexp.errors import ConfigError
from genexp.metrics import frechet
from genexp.metrics.frechet import (
    MIN_NEIGHBORHOOD_SAMPLES,
    NEIGHBORHOOD_SCORES,
    frechet_distance,
    generation_scores,
    inception_scores,
    list_generation_scores,
    neighborhood_scores,
    plan_kid_subsets,
    sliced_wasserstein,
    squared_radii,
)

needs_torch_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="needs the extra inception"
)


def _make_standardized_samples(samples: int, features: int) -> Tensor:
    """Return samples whose mean is exactly 0 and whose covariance is exactly the identity."""
    torch.manual_seed(0)
    values = torch.randn(samples, features, dtype=torch.float64)
    values = values - values.mean(0)
    return values @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(values.T))).T


def _compute_naive_scores(real: Tensor, fake: Tensor, neighbors: int) -> dict[str, float]:
    def radius(samples: Tensor, index: int) -> float:
        others = [float((samples[index] - sample).norm()) for i, sample in enumerate(samples) if i != index]
        return sorted(others)[neighbors - 1]

    real_radii = [radius(real, index) for index in range(len(real))]
    fake_radii = [radius(fake, index) for index in range(len(fake))]
    inside_real = [
        [float((r - f).norm()) <= radius_value for f in fake]
        for r, radius_value in zip(real, real_radii, strict=True)
    ]
    inside_fake = [
        [float((r - f).norm()) <= reach for f, reach in zip(fake, fake_radii, strict=True)] for r in real
    ]
    return {
        "precision": sum(any(column) for column in zip(*inside_real, strict=True)) / len(fake),
        "recall": sum(any(row) for row in inside_fake) / len(real),
        "density": sum(sum(row) for row in inside_real) / (neighbors * len(fake)),
        "coverage": sum(any(row) for row in inside_real) / len(real),
    }


def test_frechet_distance_of_two_known_gaussians() -> None:
    features = _make_standardized_samples(200, 4)
    scales = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64)  # the 0 makes one covariance singular
    shift = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    # For commuting covariances: |shift|² + the squared differences of the standard deviations.
    expected = 5 + (0 + 1 + 4 + 1)
    assert frechet_distance(features, features * scales + shift) == pytest.approx(expected)
    assert frechet_distance(features * scales + shift, features) == pytest.approx(expected)


def test_frechet_distance_agrees_with_the_matrix_root_where_covariances_do_not_commute() -> None:
    from scipy.linalg import sqrtm

    torch.manual_seed(0)
    real, fake = torch.randn(300, 6) @ torch.randn(6, 6), torch.randn(300, 6) @ torch.randn(6, 6) + 1
    first, second = torch.cov(real.double().T), torch.cov(fake.double().T)
    root = torch.from_numpy(sqrtm((first @ second).numpy()).real)
    shift = (real.double().mean(0) - fake.double().mean(0)).square().sum()
    expected = float(shift + (first + second - 2 * root).trace())
    assert frechet_distance(real, fake) == pytest.approx(expected)


def test_identical_sets_have_zero_distance_and_perfect_scores() -> None:
    torch.manual_seed(0)
    features = 100 + torch.randn(MIN_NEIGHBORHOOD_SAMPLES, 16).relu()
    scores = generation_scores(features, features.clone(), "mnist-v1")
    assert scores.pop("frechet_mnist-v1") == pytest.approx(0, abs=1e-9)
    assert scores.pop("density_mnist-v1") == pytest.approx(1, abs=0.3)
    assert scores == {"precision_mnist-v1": 1, "recall_mnist-v1": 1, "coverage_mnist-v1": 1}


@pytest.mark.parametrize(("num_real", "num_fake"), [(999, 1000), (1000, 999), (1000, 1000)])
def test_few_samples_have_no_neighborhood_scores(num_real: int, num_fake: int) -> None:
    torch.manual_seed(0)
    scores = generation_scores(torch.randn(num_real, 2), torch.randn(num_fake, 2), "mnist-v1")
    names = ["frechet"] if min(num_real, num_fake) < 1000 else ["frechet", *NEIGHBORHOOD_SCORES]
    assert list(scores) == [f"{name}_mnist-v1" for name in names]
    assert list_generation_scores(num_real, num_fake) == tuple(names)


@pytest.mark.parametrize("block", [7, 500])
def test_neighborhood_scores_equal_a_naive_implementation(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "BLOCK_ROWS", block)
    torch.manual_seed(0)
    real = torch.randn(40, 3, dtype=torch.float64)
    fake = 0.7 * torch.randn(30, 3, dtype=torch.float64) + 0.8
    expected = _compute_naive_scores(real, fake, 3)
    assert 0 < expected["recall"] < expected["precision"] < 1  # no score is trivial
    assert neighborhood_scores(real, fake, 3) == pytest.approx(expected)
    radii = squared_radii(real, 3)
    assert neighborhood_scores(real, fake, 3, real_radii=radii) == neighborhood_scores(real, fake, 3)
    assert neighborhood_scores(real, fake, 3, real_radii=4 * radii)["coverage"] > expected["coverage"]


def test_collapsed_generator_has_high_precision_and_low_coverage() -> None:
    torch.manual_seed(0)
    real = torch.randn(400, 4)
    scores = neighborhood_scores(real, 1e-3 * torch.randn(400, 4))
    assert scores["precision"] == 1
    assert scores["recall"] == 0
    assert scores["coverage"] < 0.2


def test_too_few_samples_error_gives_the_required_number() -> None:
    with pytest.raises(ConfigError, match="at least 6"):
        generation_scores(torch.randn(5, 2), torch.randn(50, 2), "mnist-v1")


@needs_torch_fidelity
def test_inception_scores_agree_with_the_frechet_distance_and_the_kernel_of_kid() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(300, 12) @ torch.randn(12, 12), torch.randn(200, 12) @ torch.randn(12, 12) + 0.5
    scores = inception_scores(real, fake)
    assert list(scores) == ["fid_inception", "kid_inception"]
    assert scores["fid_inception"] == pytest.approx(frechet_distance(real, fake), rel=1e-5)
    scores = inception_scores(real[:200], fake)  # one subset, which has all samples
    within = [(features.double() @ features.double().T / 12 + 1) ** 3 for features in (real[:200], fake)]
    between = (real[:200].double() @ fake.double().T / 12 + 1) ** 3
    expected = sum((kernel.sum() - kernel.trace()) / (200 * 199) for kernel in within) - 2 * between.mean()
    assert scores["kid_inception"] == pytest.approx(float(expected), rel=1e-4)


@needs_torch_fidelity
def test_kid_of_many_samples_is_the_mean_over_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_kid_subsets(1100) == {"kid_subsets": 100, "kid_subset_size": 1000}
    assert plan_kid_subsets(1000) == {"kid_subsets": 1, "kid_subset_size": 1000}
    monkeypatch.setattr(frechet, "KID_SUBSETS", 5)
    torch.manual_seed(0)
    real, fake = torch.randn(1200, 4), torch.randn(1100, 4) + 1
    scores = inception_scores(real, fake)
    assert 0 < scores["kid_inception_std"] < 0.1 * scores["kid_inception"]
    assert inception_scores(real, real)["fid_inception"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("value", "count", "message"), [(0.0, 1, "2 test images"), (math.inf, 9, "not finite")])
def test_unusable_inception_features_are_rejected(value: float, count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inception_scores(torch.zeros(count, 3), torch.full((count, 3), value))


def test_sliced_wasserstein_compares_sets() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 1, 6, 6)
    assert sliced_wasserstein(images, images.flip(0)) < 1e-6
    other = torch.rand(200, 1, 6, 6)
    assert sliced_wasserstein(images, other) < 0.05 < sliced_wasserstein(images, 1 - images.square())
