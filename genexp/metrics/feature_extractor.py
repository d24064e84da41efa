"""The feature space of the generation metrics: a classifier of the same data set, shipped or trained once."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.data.dataset import Dataset, Split, Stream
from genexp.data.loading import convert_dtype
from genexp.errors import ConfigError
from genexp.metrics.extractor import FeatureExtractor, load_extractor, save_extractor
from genexp.networks.classifier import Classifier

SHIPPED = {"mnist": "mnist-v1", "mnist_5k": "mnist-v1", "fashion_mnist": "fashion_mnist-v1"}
SHIPPED_FOLDER = Path(__file__).parent / "weights"
TRAINING_VERSION = 1  # raise it when the classifier or its training changes: cached ones are then trained anew
BATCH, LEARNING_RATE = 128, 4e-3
SAMPLES_SEEN, MOST_EPOCHS = 180_000, 60
MOST_SAMPLES, MOST_BYTES = 60_000, 10**9  # of a split: it is held in memory

_log = logging.getLogger(__name__)


def feature_extractor(dataset: Dataset, *, device: str | torch.device = "cpu") -> FeatureExtractor:
    """Return the extractor for `dataset`: shipped for the MNISTs, else trained on first use and cached.

    A cached one is known by the data set's name, image shape, size and a sample of its content.
    Raises ConfigError for a data set without images or without labels.
    """
    shape = dataset.spec.image_shape
    if dataset.name in SHIPPED:
        shipped = load_extractor(SHIPPED_FOLDER / f"{SHIPPED[dataset.name]}.pt")
        if shipped.image_shape == shape:
            return shipped
    if "label" not in dataset.train.streams:
        raise ConfigError(
            f"dataset={dataset.name} has no labels, and generation metrics need them to train their classifier; "
            f"choose a data set with labels, or turn the generation metrics off"
        )
    version = f"{dataset.name}-{_fingerprint(dataset)}"
    path = _cache_folder() / f"{version}.pt"
    try:
        return load_extractor(path)
    except (OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError):  # absent, or damaged
        _log.info(
            "training a classifier of %s for the generation metrics (once; then kept in %s)", dataset.name, path
        )
    extractor = train_classifier(dataset, version=version, device=device)
    try:
        save_extractor(extractor, path)
    except OSError as error:  # a home that cannot be written to costs time, not the run
        _log.warning("could not keep the classifier in %s (%s); the next run trains it again", path, error)
    return extractor


def train_classifier(
    dataset: Dataset, *, version: str, epochs: int | None = None, device: str | torch.device = "cpu", seed: int = 0
) -> FeatureExtractor:
    """Train on the training split (Adam, one-cycle rate) and measure the accuracy on the test split.

    Without `epochs`, as many as show 180,000 samples, 60 at most. Weights are rounded to float16, as they are
    stored. Torch's global generator is left as it was.
    """
    images, labels = _labelled(dataset.train)
    classes = int(labels.max()) + 1
    epochs = epochs or min(MOST_EPOCHS, max(1, SAMPLES_SEEN // len(labels)))
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        classifier = Classifier(dataset.spec.image_shape, classes).to(device).train()
        _fit(classifier, images, labels, epochs)
    classifier.load_state_dict({name: _rounded(value) for name, value in classifier.state_dict().items()})
    classifier.eval().requires_grad_(False)
    score = accuracy(classifier, dataset.test)
    return FeatureExtractor(classifier, dataset.name, version, dataset.spec.image_shape, classes, score)


def _fit(classifier: Classifier, images: Tensor, labels: Tensor, epochs: int) -> None:
    device = next(classifier.parameters()).device
    size = min(BATCH, len(labels))
    batches = len(labels) // size
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for chosen in torch.randperm(len(labels))[: batches * size].split(size):
            loss = F.cross_entropy(classifier(convert_dtype(images[chosen].to(device))), labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        _log.info("classifier: epoch %d of %d, loss %.4f", epoch + 1, epochs, float(total) / batches)


@torch.inference_mode()
def accuracy(classifier: Classifier, split: Split) -> float:
    """Return the share of `split` that `classifier` labels rightly, in [0, 1]."""
    images, labels = _labelled(split)
    device = next(classifier.parameters()).device
    guesses = torch.cat([classifier(convert_dtype(part.to(device))).argmax(1).cpu() for part in images.split(500)])
    return float((guesses == labels).double().mean())


def _cache_folder() -> Path:
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("genexp")) / "classifiers"


def _fingerprint(dataset: Dataset) -> str:
    """Return 8 hexadecimal digits of the image shape, the sizes and 64 samples spread over the training split."""
    images, labels = dataset.train.streams["image"], dataset.train.streams["label"]
    digest = hashlib.sha256(f"{TRAINING_VERSION} {dataset.spec.image_shape} {len(images)}".encode())
    for index in torch.linspace(0, len(images) - 1, min(64, len(images))).long().tolist():
        digest.update(images[index].contiguous().numpy(force=True).tobytes())
        digest.update(str(int(labels[index])).encode())
    return digest.hexdigest()[:8]


def _labelled(split: Split) -> tuple[Tensor, Tensor]:
    """Return images (samples, channels, height, width) and labels (samples,), evenly thinned to fit in memory."""
    images, labels = split.streams["image"], split.streams["label"]
    count = min(len(labels), MOST_SAMPLES, max(1, MOST_BYTES // images[0].nbytes))
    chosen = torch.linspace(0, len(labels) - 1, count, dtype=torch.float64).long()
    return _gathered(images, chosen), _gathered(labels, chosen)


def _gathered(stream: Stream, chosen: Tensor) -> Tensor:
    if isinstance(stream, Tensor):
        return stream[chosen.to(stream.device)].cpu()
    return torch.stack([stream[index] for index in chosen.tolist()])


def _rounded(value: Tensor) -> Tensor:
    return value.half().to(value.dtype) if value.is_floating_point() else value
