"""Scores of generated images: shared features and feature extractors."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from genexp.metrics.generation import GenerationMetrics
from tests.support.images import make_image_batch, make_image_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


class CountingBatches:
    """Batches that count their iterations."""

    def __init__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        self.batches, self.num_iterations = batches, 0

    def __iter__(self) -> Any:
        self.num_iterations += 1
        return iter(self.batches)


def test_real_features_are_computed_once_and_shared_by_copies() -> None:
    generation_metrics = GenerationMetrics(make_image_dataset(1000), 1100)
    samples = CountingBatches([make_image_batch(1000)])
    features = generation_metrics.extract_features(make_image_batch(1100)["image"])
    first = generation_metrics.compute_scores(samples, [features])
    assert list(first) == generation_metrics.list_names()
    assert len(first) == 5
    assert copy.deepcopy(generation_metrics).compute_scores(samples, [features]) == first
    assert samples.num_iterations == 1


def test_equal_images_have_distance_zero() -> None:
    generation_metrics = GenerationMetrics(make_image_dataset())
    scores = generation_metrics.compute_scores(
        [make_image_batch(20)], [generation_metrics.extract_features(make_image_batch(20)["image"])]
    )
    assert scores["frechet_mnist-v1"] == pytest.approx(0, abs=1e-6)


def test_unlabeled_images_are_compared_by_pixels() -> None:
    generation_metrics = GenerationMetrics(make_image_dataset(is_labeled=False, name="pictures"))
    same = generation_metrics.compute_scores(
        [make_image_batch(20)], [generation_metrics.extract_features(make_image_batch(20)["image"])]
    )
    darker = generation_metrics.compute_scores(
        [make_image_batch(20)], [generation_metrics.extract_features(make_image_batch(20)["image"] / 2)]
    )
    assert same["frechet_pixels8-v1"] == pytest.approx(0, abs=1e-6)
    assert darker["frechet_pixels8-v1"] > 1


def test_frechet_distance_is_the_same_before_and_after_an_evaluation() -> None:
    dataset = make_image_dataset()
    generation_metrics = GenerationMetrics(dataset)
    features = [generation_metrics.extract_features(make_image_batch(20)["image"])]
    before = generation_metrics.compute_frechet(features)
    images = dataset.test.streams["image"]
    assert isinstance(images, Tensor)
    scores = generation_metrics.compute_scores([{"image": images / 255}], features)
    assert before == pytest.approx(scores["frechet_mnist-v1"], rel=1e-6)


@pytest.mark.parametrize(
    ("num_real", "num_generated", "reason"),
    [
        (1000, 1000, None),
        (1000, 999, "model.evaluation_samples=999: .* 1,000. Use model.evaluation_samples=1000 or more."),
        (999, 1000, "dataset=mnist_5k: 999 test images, .* 1,000. Use a larger dataset.limit, or "),
        (999, None, "dataset=mnist_5k: 999 test images, "),
    ],
)
def test_few_images_leave_the_frechet_distance(
    num_real: int, num_generated: int | None, reason: str | None
) -> None:
    generation_metrics = GenerationMetrics(make_image_dataset(num_real), num_generated)
    found = generation_metrics.find_skip_reason("model.evaluation_samples")
    names = [f"{name}_mnist-v1" for name in ("frechet", "precision", "recall", "density", "coverage")]
    assert generation_metrics.list_names() == (names if reason is None else names[:1])
    assert (found is None) if reason is None else (found is not None and re.match(reason, found))


def test_features_are_generated_in_batches() -> None:
    generation_metrics = GenerationMetrics(make_image_dataset(), 1100)
    counts: list[int] = []

    def sample(count: int) -> Tensor:
        counts.append(count)
        return make_image_batch(count)["image"]

    features = generation_metrics.generate_features(sample)
    assert counts == [500, 500, 100] == [len(part) for part in features]
