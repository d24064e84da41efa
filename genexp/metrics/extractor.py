"""A trained classifier as a map from images to features, in memory and in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genexp.data.loading import convert_dtype
from genexp.networks.classifier import Classifier


@dataclass(frozen=True)
class FeatureExtractor:
    """A trained classifier, and all that is worth knowing of it."""

    classifier: Classifier
    dataset: str
    version: str  # stands in the names of the metrics: scores of different versions cannot be compared
    image_shape: tuple[int, int, int]
    classes: int
    accuracy: float  # on the test split, in [0, 1]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features on the CPU: (samples, channels, height, width) → (samples, features).

        `images` are uint8, or float in [0, 1], on any device; the classifier moves to it.
        """
        classifier = self.classifier.to(images.device).eval()
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat(
                [classifier.extract_features(convert_dtype(part).float()).cpu() for part in images.split(500)]
            )


def save_extractor(extractor: FeatureExtractor, path: Path) -> None:
    """Write `extractor` to `path`, whole or not at all; weights in float16. Raises OSError."""
    state = extractor.classifier.state_dict()
    content = {
        "dataset": extractor.dataset,
        "version": extractor.version,
        "image_shape": list(extractor.image_shape),
        "classes": extractor.classes,
        "accuracy": extractor.accuracy,
        "weights": {
            name: value.half().cpu() if value.is_floating_point() else value.cpu() for name, value in state.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_path = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        torch.save(content, temporary_path)
        temporary_path.replace(path)
    finally:
        temporary_path.unlink(missing_ok=True)


def load_extractor(path: Path) -> FeatureExtractor:
    """Read what `save_extractor` wrote, executing none of it. Raises OSError and, where damaged, other errors."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    channels, height, width = content["image_shape"]
    shape = (channels, height, width)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        classifier = Classifier(shape, content["classes"])
    classifier.load_state_dict(content["weights"])
    classifier.eval().requires_grad_(False)
    return FeatureExtractor(
        classifier, content["dataset"], content["version"], shape, content["classes"], content["accuracy"]
    )
