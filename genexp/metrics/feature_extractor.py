"""Feature extractor of the generation metrics: a classifier of the data set, bundled, or trained and cached."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.data.dataset import Dataset, Split, Stream
from genexp.data.loading import convert_and_scale
from genexp.errors import ConfigError
from genexp.networks.classifier import Classifier

BUNDLED_VERSIONS = {"mnist": "mnist-v1", "mnist_5k": "mnist-v1", "fashion_mnist": "fashion_mnist-v1"}
BUNDLED_IMAGE_SHAPE = (1, 28, 28)
WEIGHTS_DIR = Path(__file__).parent / "weights"
TRAINING_VERSION = 1  # increase it when the classifier or its training changes: older files are then ignored
FEATURE_BATCH_SIZE = 100  # images whose features are computed at once, so that they fit in the cache of a CPU
BATCH_SIZE, LEARNING_RATE = 128, 4e-3
TRAINING_SAMPLES, MAX_EPOCHS = 180_000, 60  # samples drawn in a training, and its maximum number of epochs
MAX_SPLIT_SAMPLES, MAX_SPLIT_BYTES = 60_000, 10**9  # limits of the part of a split that is kept in memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureExtractor:
    """Trained classifier with its data set, version and accuracy."""

    classifier: Classifier
    dataset_name: str  # name of the data set
    version: str  # part of the metrics' names: scores of different versions are not comparable
    image_shape: tuple[int, int, int]  # (channels, height, width)
    num_classes: int
    accuracy: float  # on the test split, in [0, 1]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features on the CPU: (samples, channels, height, width) → (samples, features).

        `images` are uint8, or float in [0, 1], on any device. A faster copy of the classifier computes them there.
        """
        network = self._fast_classifier.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            parts = (convert_and_scale(part).float() for part in images.split(FEATURE_BATCH_SIZE))
            return torch.cat([network.extract_features(part).cpu() for part in parts])

    @cached_property
    def _fast_classifier(self) -> Classifier:
        return self.classifier.build_fast_copy()


def save_extractor(extractor: FeatureExtractor, path: Path) -> None:
    """Write `extractor` to `path` atomically, with weights in float16. Raises OSError."""
    state = extractor.classifier.state_dict()
    content = {
        "dataset": extractor.dataset_name,
        "version": extractor.version,
        "image_shape": list(extractor.image_shape),
        "classes": extractor.num_classes,
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
    """Read a file of `save_extractor` without executing code from it. Raises OSError; others if damaged."""
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


def load_or_train_extractor(dataset: Dataset, *, device: str | torch.device = "cpu") -> FeatureExtractor:
    """Return the extractor of `dataset`: bundled for MNIST and Fashion-MNIST, else trained once and cached.

    The cache key is made from the data set's name, image shape, size and a sample of its content.
    Raises ConfigError for a data set without images or without labels.
    """
    version = get_extractor_version(dataset)
    if version in BUNDLED_VERSIONS.values():
        return load_extractor(WEIGHTS_DIR / f"{version}.pt")
    path = _get_cache_dir() / f"{version}.pt"
    try:
        return load_extractor(path)
    except (OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError):  # the file is missing or damaged
        _log.info(
            "training the classifier of %s for the generation metrics (once; cached in %s)", dataset.name, path
        )
    extractor = train_classifier(dataset, version=version, device=device)
    try:
        save_extractor(extractor, path)
    except OSError as error:  # an unwritable cache directory must not end the run
        _log.warning("classifier not cached in %s (%s): the next run trains it again", path, error)
    return extractor


def get_extractor_version(dataset: Dataset) -> str:
    """Return the version of the extractor of `dataset`, without loading or training it.

    Raises ConfigError for a data set without images or without labels.
    """
    if dataset.spec.image_shape == BUNDLED_IMAGE_SHAPE and dataset.name in BUNDLED_VERSIONS:
        return BUNDLED_VERSIONS[dataset.name]
    if "label" not in dataset.train.streams:
        raise ConfigError(
            f"dataset={dataset.name}: has no labels, which generation metrics require to train their classifier. "
            f"Use a data set with labels, or disable the generation metrics."
        )
    return f"{dataset.name}-{_hash_dataset(dataset)}"


def train_classifier(
    dataset: Dataset, *, version: str, epochs: int | None = None, device: str | torch.device = "cpu", seed: int = 0
) -> FeatureExtractor:
    """Train on the training split (AdamW, one-cycle learning rate) and measure the accuracy on the test split.

    By default `epochs` is the number that draws 180,000 samples, at most 60. Weights are rounded to float16, as in
    the file. Torch's global generator is left unchanged.
    """
    images, labels = _load_labeled_images(dataset.train)
    num_classes = int(labels.max()) + 1
    epochs = epochs or min(MAX_EPOCHS, max(1, TRAINING_SAMPLES // len(labels)))
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        classifier = Classifier(dataset.spec.image_shape, num_classes).to(device).train()
        _fit(classifier, images, labels, epochs)
    classifier.load_state_dict({name: _round_to_float16(value) for name, value in classifier.state_dict().items()})
    classifier.eval().requires_grad_(False)
    test_accuracy = classifier_accuracy(classifier, dataset.test)
    return FeatureExtractor(
        classifier, dataset.name, version, dataset.spec.image_shape, num_classes, test_accuracy
    )


def _fit(classifier: Classifier, images: Tensor, labels: Tensor, epochs: int) -> None:
    device = next(classifier.parameters()).device
    batch_size = min(BATCH_SIZE, len(labels))
    num_batches = len(labels) // batch_size
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * num_batches)
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for indices in torch.randperm(len(labels))[: num_batches * batch_size].split(batch_size):
            loss = F.cross_entropy(
                classifier(convert_and_scale(images[indices].to(device))), labels[indices].to(device)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach()
        _log.info("classifier: epoch %d of %d, loss %.4f", epoch + 1, epochs, float(total) / num_batches)


@torch.inference_mode()
def classifier_accuracy(classifier: Classifier, split: Split) -> float:
    """Return the fraction of samples of `split` that `classifier` labels correctly, in [0, 1]."""
    images, labels = _load_labeled_images(split)
    device = next(classifier.parameters()).device
    predictions = torch.cat(
        [classifier(convert_and_scale(part.to(device))).argmax(1).cpu() for part in images.split(500)]
    )
    return float((predictions == labels).double().mean())


def _get_cache_dir() -> Path:
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("genexp")) / "classifiers"


def _hash_dataset(dataset: Dataset) -> str:
    """Return 8 hexadecimal digits of a hash of the image shape, the training size and 64 training samples."""
    images, labels = dataset.train.streams["image"], dataset.train.streams["label"]
    digest = hashlib.sha256(f"{TRAINING_VERSION} {dataset.spec.image_shape} {len(images)}".encode())
    for index in torch.linspace(0, len(images) - 1, min(64, len(images))).long().tolist():
        digest.update(images[index].contiguous().numpy(force=True).tobytes())
        digest.update(str(int(labels[index])).encode())
    return digest.hexdigest()[:8]


def _load_labeled_images(split: Split) -> tuple[Tensor, Tensor]:
    """Return images (samples, channels, height, width) and labels (samples,), subsampled to fit in memory."""
    images, labels = split.streams["image"], split.streams["label"]
    count = min(len(labels), MAX_SPLIT_SAMPLES, max(1, MAX_SPLIT_BYTES // images[0].nbytes))
    indices = torch.linspace(0, len(labels) - 1, count, dtype=torch.float64).long()
    return _gather(images, indices), _gather(labels, indices)


def _gather(stream: Stream, indices: Tensor) -> Tensor:
    if isinstance(stream, Tensor):
        return stream[indices.to(stream.device)].cpu()
    return torch.stack([stream[index] for index in indices.tolist()])


def _round_to_float16(value: Tensor) -> Tensor:
    return value.half().to(value.dtype) if value.is_floating_point() else value
