"""Fréchet distance, precision, recall, density and coverage of generated images of one data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.data.dataset import Dataset
from genexp.metrics.feature_extractor import FeatureExtractor, load_or_train_extractor
from genexp.metrics.frechet import generation_scores
from genexp.technique import Batches

MAX_REAL_IMAGES = 10_000  # held-out images that generated images are compared with


class PixelFeatures:
    """Feature extractor for data sets without labels: the image averaged to at most 8×8 pixels."""

    version = "pixels8-v1"

    def __call__(self, images: Tensor) -> Tensor:
        """Return features on the CPU: (samples, channels, height, width) → (samples, features)."""
        height, width = (min(8, side) for side in images.shape[2:])
        return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1).cpu()


class GenerationMetrics:
    """Metrics that compare generated images with held-out images, in the features of the data set's classifier.

    The first use loads the classifier, or trains it. The features of the real images are computed once.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._extractor: FeatureExtractor | PixelFeatures | None = None
        self._real_samples: Batches | None = None
        self._real_features: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return self: the EMA copy of a technique shares the features of the real images."""
        return self

    def extract_features(self, images: Tensor) -> Tensor:
        """Return features on the CPU: (samples, channels, height, width) in [0, 1] → (samples, features)."""
        return self._get_extractor(images.device)(images)

    def compute_scores(self, real_batches: Batches, generated_features: Sequence[Tensor]) -> dict[str, float]:
        """Return frechet_V, precision_V, recall_V, density_V and coverage_V, where V is the extractor's version.

        `real_batches` are batches of real images, `generated_features` parts (samples, features) of the features
        of generated ones. frechet_V is also returned as "frechet", so that trainer.objective=frechet works
        for every data set. Raises ConfigError for too few images.
        """
        if self._real_samples is not real_batches:
            self._real_samples, self._real_features = real_batches, self._extract_real_features(real_batches)
        assert self._real_features is not None
        assert self._extractor is not None
        version = self._extractor.version
        scores = generation_scores(self._real_features, torch.cat(list(generated_features)), version)
        return {"frechet": scores[f"frechet_{version}"], **scores}

    def label_accuracy(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Return label_accuracy_V: the fraction of generated images that the classifier gives the requested label.

        `features` is (samples, features), `labels` (samples,). V is the extractor's version.
        """
        extractor = self._extractor
        assert isinstance(extractor, FeatureExtractor)
        device = next(extractor.classifier.parameters()).device
        predictions = extractor.classifier.to_logits(features.to(device)).argmax(1).cpu()
        return {f"label_accuracy_{extractor.version}": float((predictions == labels.cpu()).double().mean())}

    def _extract_real_features(self, samples: Batches) -> Tensor:
        parts: list[Tensor] = []
        for batch in samples:
            parts.append(self.extract_features(batch["image"]))
            if sum(len(part) for part in parts) >= MAX_REAL_IMAGES:
                break
        return torch.cat(parts)[:MAX_REAL_IMAGES]

    def _get_extractor(self, device: torch.device) -> FeatureExtractor | PixelFeatures:
        if self._extractor is None:
            has_labels = "label" in self._dataset.train.streams
            self._extractor = (
                load_or_train_extractor(self._dataset, device=device) if has_labels else PixelFeatures()
            )
        return self._extractor
