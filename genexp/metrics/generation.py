"""Fréchet distance, precision, recall, density and coverage of generated images of one data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.data.dataset import Dataset
from genexp.data.loading import convert_and_scale
from genexp.metrics.feature_extractor import FeatureExtractor, get_extractor_version, load_or_train_extractor
from genexp.metrics.frechet import (
    MIN_NEIGHBORHOOD_SAMPLES,
    frechet_distance,
    generation_scores,
    list_generation_scores,
    squared_radii,
)
from genexp.technique import Batches

PIXEL_FEATURES_VERSION = "pixels8-v1"
MAX_REAL_IMAGES = 10_000  # held-out images that generated images are compared with
BATCH_SIZE = 500  # images that are generated, or read, at once


class PixelFeatures:
    """Feature extractor for data sets without labels: the image averaged to at most 8×8 pixels."""

    version = PIXEL_FEATURES_VERSION

    def __call__(self, images: Tensor) -> Tensor:
        """Return features on the CPU: (samples, channels, height, width) → (samples, features)."""
        height, width = (min(8, side) for side in images.shape[2:])
        return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1).cpu()


def generate_batches(sample: Callable[[int], Tensor], count: int) -> Iterator[Tensor]:
    """Yield `count` images from `sample`: (at most BATCH_SIZE, channels, height, width) each."""
    for start in range(0, count, BATCH_SIZE):
        yield sample(min(BATCH_SIZE, count - start))


class GenerationMetrics:
    """Metrics that compare generated images with held-out images, in the features of the data set's classifier.

    The first use loads the classifier, or trains it. The features of the real images, and the distances between
    them, are computed once.
    """

    num_real: int  # test images of each evaluation
    num_generated: int  # generated images of each evaluation

    def __init__(self, dataset: Dataset, num_generated: int | None = None) -> None:
        """Set the number of generated images of each evaluation, by default as many as there are real images."""
        self._dataset = dataset
        self.num_real = min(len(dataset.test), MAX_REAL_IMAGES)
        self.num_generated = self.num_real if num_generated is None else num_generated
        self._extractor: FeatureExtractor | PixelFeatures | None = None
        self._real_batches: Batches | None = None
        self._real_features: Tensor | None = None
        self._real_radii: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return self, so that the EMA copy of a technique shares the features of the real images."""
        return self

    def list_names(self, *, has_labels: bool = False) -> list[str]:
        """Return the keys of the result of `compute_scores` and, with `has_labels`, of `label_accuracy`.

        The names are known before the classifier is loaded or trained.
        """
        scores = list_generation_scores(self.num_real, self.num_generated)
        return [f"{name}_{self._version}" for name in (*scores, *(["label_accuracy"] if has_labels else []))]

    def find_skip_reason(self, key: str | None = None) -> str | None:
        """Return the reason why precision, recall, density and coverage are not computed, or None if they are.

        `key` is the configuration key of the number of generated images, None if that is the number of real ones.
        """
        if "precision" in list_generation_scores(self.num_real, self.num_generated):
            return None
        rule = f"precision, recall, density and coverage require {MIN_NEIGHBORHOOD_SAMPLES:,}"
        if self.num_real < MIN_NEIGHBORHOOD_SAMPLES:
            return (
                f"dataset={self._dataset.name}: {self.num_real:,} test images, but {rule}. Use a larger "
                f"dataset.limit, or a data set with more test images."
            )
        return f"{key}={self.num_generated}: {rule}. Use {key}={MIN_NEIGHBORHOOD_SAMPLES} or more."

    def extract_features(self, images: Tensor) -> Tensor:
        """Return features on the CPU: (samples, channels, height, width) in [0, 1] → (samples, features)."""
        return self._get_extractor(images.device)(images)

    def generate_features(self, sample: Callable[[int], Tensor]) -> list[Tensor]:
        """Return the features of images from `sample`, one tensor (samples, features) for each batch.

        `sample` returns the requested number of images, at most BATCH_SIZE, in [0, 1].
        """
        return [self.extract_features(images) for images in generate_batches(sample, self.num_generated)]

    def compute_scores(self, real_batches: Batches, generated_features: Sequence[Tensor]) -> dict[str, float]:
        """Return the scores that `list_names` names, without label_accuracy.

        `real_batches` are batches of real images, `generated_features` parts (samples, features) of the features
        of generated ones. Raises ConfigError for too few images.
        """
        if self._real_batches is not real_batches:
            images = (batch["image"] for batch in real_batches)
            self._real_batches, self._real_features = real_batches, self._extract_real_features(images)
            names = list_generation_scores(len(self._real_features), self.num_generated)
            self._real_radii = squared_radii(self._real_features) if "precision" in names else None
        assert self._real_features is not None
        assert self._extractor is not None
        return generation_scores(
            self._real_features,
            torch.cat(list(generated_features)),
            self._extractor.version,
            real_radii=self._real_radii,
        )

    def compute_frechet(self, generated_features: Sequence[Tensor]) -> float:
        """Return the Fréchet distance of generated to held-out images, for comparisons within a run.

        `generated_features` are parts (samples, features). This is faster than `compute_scores`.
        """
        if self._real_features is None:
            self._real_features = self._extract_real_features(self._read_test_images())
        return frechet_distance(self._real_features, torch.cat(list(generated_features)))

    def label_accuracy(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Return label_accuracy_V: the fraction of generated images classified as their requested class.

        `features` is (samples, features), `labels` (samples,). V is the extractor's version.
        """
        extractor = self._extractor
        assert isinstance(extractor, FeatureExtractor)
        device = next(extractor.classifier.parameters()).device
        predictions = extractor.classifier.to_logits(features.to(device)).argmax(1).cpu()
        return {f"label_accuracy_{extractor.version}": float((predictions == labels.cpu()).double().mean())}

    @property
    def _has_labels(self) -> bool:
        return "label" in self._dataset.train.streams

    @cached_property
    def _version(self) -> str:
        return get_extractor_version(self._dataset) if self._has_labels else PIXEL_FEATURES_VERSION

    def _extract_real_features(self, image_batches: Iterable[Tensor]) -> Tensor:
        parts: list[Tensor] = []
        for images in image_batches:
            parts.append(self.extract_features(images))
            if sum(len(part) for part in parts) >= MAX_REAL_IMAGES:
                break
        return torch.cat(parts)[:MAX_REAL_IMAGES]

    def _read_test_images(self) -> Iterator[Tensor]:
        """Yield the images of the test split in order: (samples, channels, height, width) in [0, 1]."""
        stream = self._dataset.test.streams["image"]
        for start in range(0, len(stream), BATCH_SIZE):
            indices = range(start, min(start + BATCH_SIZE, len(stream)))
            yield convert_and_scale(torch.stack([stream[index] for index in indices]))

    def _get_extractor(self, device: torch.device) -> FeatureExtractor | PixelFeatures:
        if self._extractor is None:
            self._extractor = (
                load_or_train_extractor(self._dataset, device=device) if self._has_labels else PixelFeatures()
            )
        return self._extractor
