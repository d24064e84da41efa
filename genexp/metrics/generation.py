"""Who says how good generated images are: the generation metrics, bound to a data set."""

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

MAX_REAL_IMAGES = 10_000  # images of the held-out split that generated ones are compared with


class PixelFeatures:
    """Feature space of a data set without labels, thus without a classifier: the image at 8×8 pixels at most."""

    version = "pixels8-v1"

    def __call__(self, images: Tensor) -> Tensor:
        """Return features on the CPU: (samples, channels, height, width) → (samples, features)."""
        height, width = (min(8, side) for side in images.shape[2:])
        return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1).cpu()


class GenerationMetrics:
    """Compares generated images with held-out ones, in the features of the data set's classifier.

    The classifier is loaded (or trained, once) at the first use, and the real images are seen once.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._extractor: FeatureExtractor | PixelFeatures | None = None
        self._real_samples: Batches | None = None
        self._real_features: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return this very judge: the averaged copy of a technique need not see the real images again."""
        return self

    def extract_features(self, images: Tensor) -> Tensor:
        """Return features (samples, features) on the CPU of images (samples, c, h, w) in [0, 1]."""
        return self._get_extractor(images.device)(images)

    def compute_scores(self, samples: Batches, generated: Sequence[Tensor]) -> dict[str, float]:
        """Return frechet_V, precision_V, ... of `generated` features, V being the feature space's version.

        The first one is there under the plain name "frechet" too, which names no data set: a recipe's
        objective. Raises ConfigError for too few images.
        """
        if self._real_samples is not samples:
            self._real_samples, self._real_features = samples, self._extract_real_features(samples)
        assert self._real_features is not None
        assert self._extractor is not None
        version = self._extractor.version
        scores = generation_scores(self._real_features, torch.cat(list(generated)), version)
        return {"frechet": scores[f"frechet_{version}"], **scores}

    def label_accuracy(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Return label_accuracy_V: the share of generated images that the classifier labels as asked for."""
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
