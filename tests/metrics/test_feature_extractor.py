"""Feature extractors: bundled weights, training, cache and errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from genexp.data.dataset import Dataset, LazyStream, Split
from genexp.errors import ConfigError
from genexp.metrics import feature_extractor as extractor_module
from genexp.metrics.feature_extractor import (
    WEIGHTS_DIR,
    classifier_accuracy,
    load_extractor,
    load_or_train_extractor,
    save_extractor,
    train_classifier,
)
from genexp.networks.classifier import Classifier
from tests.support.datasets import load_values

REPO_ROOT = Path(__file__).parents[2]


def _make_bars(name: str = "bars", *, samples: int = 300, seed: int = 0) -> Dataset:
    """Return noisy images (n, 1, 8, 8) of three classes: a bright left half, right half, or neither."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 3
    images = torch.randint(0, 100, (samples, 1, 8, 8), generator=generator, dtype=torch.uint8)
    images[labels == 1, ..., :4] += 150
    images[labels == 2, ..., 4:] += 150
    split = Split({"image": images, "label": labels})
    return Dataset(name, split, split)


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(extractor_module, "_get_cache_dir", lambda: tmp_path)
    monkeypatch.setattr(extractor_module, "TRAINING_SAMPLES", 3000)
    return tmp_path


def test_shipped_mnist_classifier_is_accurate_on_mnist_5k() -> None:
    dataset = load_values({"name": "mnist_5k", "limit": None, "resident_gb": 4.0})
    extractor = load_or_train_extractor(dataset)
    assert extractor.version == "mnist-v1"
    assert extractor.accuracy >= 0.99
    assert classifier_accuracy(extractor.classifier, dataset.test) >= 0.985


@pytest.mark.slow
@pytest.mark.parametrize(("name", "min_accuracy"), [("mnist", 0.99), ("fashion_mnist", 0.91)])
def test_shipped_classifiers_reach_their_stored_accuracy(name: str, min_accuracy: float) -> None:
    root = Path(os.environ.get("GENEXP_DATA", REPO_ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no data at {root}: point GENEXP_DATA to a folder with MNIST and FashionMNIST")
    dataset = load_values({"name": name, "root": str(root), "limit": None, "resident_gb": 4.0})
    extractor = load_or_train_extractor(dataset)
    assert (extractor.dataset_name, extractor.version) == (name, f"{name}-v1")
    assert extractor.accuracy >= min_accuracy
    assert classifier_accuracy(extractor.classifier, dataset.test) == pytest.approx(extractor.accuracy, abs=5e-4)


def test_shipped_weights_are_small() -> None:
    files = list(WEIGHTS_DIR.glob("*.pt"))
    assert {file.stem for file in files} == set(extractor_module.BUNDLED_VERSIONS.values())
    assert all(file.stat().st_size < 1_000_000 for file in files)


def test_features_do_not_depend_on_dtype_or_batch_size() -> None:
    extractor = load_extractor(WEIGHTS_DIR / "mnist-v1.pt")
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    codes = extractor(images)
    assert codes.shape == (5, 64)
    assert not codes.requires_grad
    torch.testing.assert_close(extractor(images / 255), codes)
    torch.testing.assert_close(torch.cat([extractor(image[None]) for image in images]), codes)


def test_a_classifier_is_trained_once_and_then_read_from_the_cache(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_or_train_extractor(_make_bars())
    assert first.accuracy > 0.9
    assert first.version.startswith("bars-")
    assert [file.name for file in cache_dir.iterdir()] == [f"{first.version}.pt"]

    monkeypatch.setattr(extractor_module, "train_classifier", None)  # a second training would fail
    again = load_or_train_extractor(_make_bars())
    assert (again.version, again.accuracy) == (first.version, first.accuracy)
    images = _make_bars().test.streams["image"]
    assert isinstance(images, torch.Tensor)
    torch.testing.assert_close(again(images), first(images), atol=0, rtol=0)


def test_version_depends_on_content_and_size(cache_dir: Path) -> None:
    sets = (_make_bars(), _make_bars(seed=1), _make_bars(samples=303), _make_bars("other"))
    assert len({load_or_train_extractor(dataset).version for dataset in sets}) == 4


def test_damaged_cache_file_is_replaced_by_training(cache_dir: Path) -> None:
    version = load_or_train_extractor(_make_bars()).version
    file = cache_dir / f"{version}.pt"
    whole = file.read_bytes()
    for damage in (b"", b"no weights", whole[: len(whole) // 2]):
        file.write_bytes(damage)
        assert load_or_train_extractor(_make_bars()).accuracy > 0.9
        assert load_extractor(file).version == version


def test_unwritable_cache_is_ignored(cache_dir: Path) -> None:
    (cache_dir / "classifiers").write_text("in the way")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor_module, "_get_cache_dir", lambda: cache_dir / "classifiers")
        assert load_or_train_extractor(_make_bars()).accuracy > 0.9


def test_shipped_classifier_is_not_used_for_other_image_shapes(cache_dir: Path) -> None:
    assert load_or_train_extractor(_make_bars("mnist")).version != "mnist-v1"


def test_unlabeled_images_are_rejected() -> None:
    images = Split({"image": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)})
    with pytest.raises(ConfigError, match="generation metrics require"):
        load_or_train_extractor(Dataset("photographs", images, images))


def test_training_is_deterministic_and_does_not_use_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = train_classifier(_make_bars(), version="v", epochs=1)
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():  # as during evaluation
        second = train_classifier(_make_bars(), version="v", epochs=1)
    for left, right in zip(first.classifier.parameters(), second.classifier.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=0, rtol=0)


def test_classifier_can_be_trained_on_lazy_images() -> None:
    dataset = _make_bars(samples=60)

    class OnDisk(LazyStream):
        sample_shape, dtype = (1, 8, 8), torch.uint8

        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: int) -> torch.Tensor:
            images = dataset.train.streams["image"]
            assert isinstance(images, torch.Tensor)
            return images[index]

    split = Split({"image": OnDisk(), "label": dataset.train.streams["label"]})
    assert train_classifier(Dataset("folder", split, split), version="v", epochs=40).accuracy > 0.9


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = train_classifier(_make_bars(samples=30), version="v", epochs=1)
    path = tmp_path / "v.pt"
    save_extractor(extractor, path)
    before = path.read_bytes()

    def fail(content: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_extractor(extractor, path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 48), (3, 128, 200), (1, 2, 5)], ids=str)
def test_classifier_accepts_images_of_any_size(shape: tuple[int, int, int]) -> None:
    classifier = Classifier(shape, num_classes=4).eval()
    assert classifier.extract_features(torch.rand(2, *shape)).shape == (2, 64)
    assert classifier(torch.rand(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 48), (3, 128, 200)], ids=str)
def test_fast_copy_extracts_the_same_features(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    classifier = Classifier(shape, num_classes=4)
    for _ in range(3):  # batch norms with statistics of their own
        classifier.train()(torch.rand(8, *shape))
    images = torch.rand(4, *shape)
    with torch.no_grad():
        expected = classifier.eval().extract_features(images)
        features = classifier.build_fast_copy().extract_features(images)
    assert expected.std() > 0.05  # the features differ between images and units
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
