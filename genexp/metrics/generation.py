"""Who says how good generated images are: the generation metrics, bound to a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.data.dataset import Dataset
from genexp.metrics.extractor import FeatureExtractor
from genexp.metrics.feature_extractor import feature_extractor
from genexp.metrics.frechet import generation_scores
from genexp.technique import Batches

MOST_REAL = 10_000  # images of the held-out split that generated ones are compared with


class PixelSpace:
    """Feature space of a data set without labels, thus without a classifier: the image at 8×8 pixels at most."""

    version = "pixels8-v1"

    def __call__(self, images: Tensor) -> Tensor:
        """Return features on the CPU: (samples, channels, height, width) → (samples, features)."""
        height, width = (min(8, side) for side in images.shape[2:])
        return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1).cpu()


class GenerationJudge:
    """Compares generated images with held-out ones, in the features of the data set's classifier.

    The classifier is loaded (or trained, once) at the first use, and the real images are seen once.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._space: FeatureExtractor | PixelSpace | None = None
        self._seen: Batches | None = None
        self._real: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return this very judge: the averaged copy of a technique need not see the real images again."""
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return features (samples, features) on the CPU of images (samples, c, h, w) in [0, 1]."""
        return self._space_on(images.device)(images)

    def scores(self, samples: Batches, generated: Sequence[Tensor]) -> dict[str, float]:
        """Return frechet_V, precision_V, ... of `generated` features, V being the feature space's version.

        The first one is there under the plain name "frechet" too, which names no data set: a recipe's
        objective. Raises ConfigError for too few images.
        """
        if self._seen is not samples:
            self._seen, self._real = samples, self._features_of(samples)
        assert self._real is not None
        assert self._space is not None
        version = self._space.version
        scores = generation_scores(self._real, torch.cat(list(generated)), version)
        return {"frechet": scores[f"frechet_{version}"], **scores}

    def label_accuracy(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Return label_accuracy_V: the share of generated images that the classifier labels as asked for."""
        space = self._space
        assert isinstance(space, FeatureExtractor)
        device = next(space.classifier.parameters()).device
        guesses = space.classifier.to_logits(features.to(device)).argmax(1).cpu()
        return {f"label_accuracy_{space.version}": float((guesses == labels.cpu()).double().mean())}

    def _features_of(self, samples: Batches) -> Tensor:
        parts: list[Tensor] = []
        for batch in samples:
            parts.append(self.features(batch["image"]))
            if sum(len(part) for part in parts) >= MOST_REAL:
                break
        return torch.cat(parts)[:MOST_REAL]

    def _space_on(self, device: torch.device) -> FeatureExtractor | PixelSpace:
        if self._space is None:
            labelled = "label" in self._dataset.train.streams
            self._space = feature_extractor(self._dataset, device=device) if labelled else PixelSpace()
        return self._space
