"""Data sets of torchvision: files of the same format, damaged files, downloads, and runs on color images."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.io import savemat

from genexp.data.dataset import Dataset
from genexp.data.sources import _torchvision
from genexp.data.sources.cifar10 import TEST_NAME, TRAIN_NAMES
from genexp.data.sources.emnist import CLASSES_BY_SPLIT
from genexp.errors import DataError
from tests.support.command import format_run_dir_override, get_error_line, load_status, run_genexp
from tests.support.compose import make_tiny_overrides
from tests.support.datasets import get_stream, load_dataset_config, load_values

NUM_TRAIN, NUM_TEST = 20, 10  # of the IDX files and of SVHN
TRAIN_PER_FILE = 8  # of CIFAR-10
GENERATOR = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache, without environment variable and network."""
    monkeypatch.delenv("GENEXP_DATA", raising=False)
    monkeypatch.setattr(_torchvision, "get_cache_dir", lambda: tmp_path / "cache")

    def raise_no_network(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", raise_no_network)
    return tmp_path / "cache"


def load(name: str, root: Path | None = None, **values: Any) -> Dataset:
    return load_values(load_dataset_config(name, root=None if root is None else str(root), **values))


def write_idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    """Write an IDX file of uint8 or int32 values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = 8 if values.dtype == np.uint8 else 12
    header = bytes((0, 0, code, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(values.dtype.newbyteorder(">")).tobytes())


def make_pixels(count: int, *shape: int) -> np.ndarray[Any, Any]:
    return GENERATOR.integers(0, 256, (count, *shape), dtype=np.uint8)


def write_idx_files(folder: Path, prefixes: tuple[str, str], first_label: int = 0, count: int = 10) -> None:
    """Write files with the names of MNIST, after a prefix for each split."""
    for prefix, number in zip(prefixes, (NUM_TRAIN, NUM_TEST), strict=True):
        labels = np.arange(number, dtype=np.uint8) % count + first_label
        write_idx(folder / f"{prefix}-images-idx3-ubyte", make_pixels(number, 28, 28))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)


def write_kmnist(root: Path) -> None:
    write_idx_files(root / "KMNIST" / "raw", ("train", "t10k"))


def write_qmnist(root: Path) -> None:
    """Write labels of eight numbers, of which the first is the class."""
    for part, number in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        labels = np.full((number, 8), 70_000, np.int32)
        labels[:, 0] = np.arange(number) % 10
        write_idx(root / "QMNIST" / "raw" / f"qmnist-{part}-images-idx3-ubyte", make_pixels(number, 28, 28))
        write_idx(root / "QMNIST" / "raw" / f"qmnist-{part}-labels-idx2-int", labels)


def write_emnist(root: Path, split: str = "balanced") -> None:
    prefixes = (f"emnist-{split}-train", f"emnist-{split}-test")
    write_idx_files(root / "EMNIST" / "raw", prefixes, 1 if split == "letters" else 0)


def write_svhn(root: Path) -> None:
    """Write MATLAB files in which the digit 0 has the label 10."""
    (root / "SVHN").mkdir(parents=True, exist_ok=True)
    for name, number in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        pixels = make_pixels(number, 32, 32, 3).transpose(1, 2, 3, 0)
        labels = (np.arange(number) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / "SVHN" / f"{name}_32x32.mat", {"X": pixels, "y": labels})


def pickle_as_python2(pixels: np.ndarray[Any, Any], labels: list[int]) -> bytes:
    """Return the pickle that Python 2 wrote in the files of CIFAR-10: strings of bytes, old names of NumPy."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    number = b"".join(b"J" + struct.pack("<i", value) for value in pixels.shape)
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01" + number + b"\x86" + dtype + b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    items = text(b"data") + array + b"tb" + text(b"labels") + b"](" + b"".join(b"K" + bytes([i]) for i in labels)
    return b"\x80\x02}(" + items + b"eu."


def write_cifar10(root: Path) -> None:
    folder = root / "CIFAR10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for index, name in enumerate((*TRAIN_NAMES, TEST_NAME)):
        labels = [(index + i) % 10 for i in range(TRAIN_PER_FILE)]
        (folder / name).write_bytes(pickle_as_python2(make_pixels(TRAIN_PER_FILE, 3072), labels))


WRITERS: dict[str, tuple[Callable[[Path], None], str, tuple[int, int, int], tuple[int, int]]] = {
    # name → writer, file, shape, samples
    "kmnist": (write_kmnist, "KMNIST/raw/train-images-idx3-ubyte", (1, 28, 28), (NUM_TRAIN, NUM_TEST)),
    "qmnist": (write_qmnist, "QMNIST/raw/qmnist-train-labels-idx2-int", (1, 28, 28), (NUM_TRAIN, NUM_TEST)),
    "emnist": (
        write_emnist,
        "EMNIST/raw/emnist-balanced-train-images-idx3-ubyte",
        (1, 28, 28),
        (NUM_TRAIN, NUM_TEST),
    ),
    "svhn": (write_svhn, "SVHN/train_32x32.mat", (3, 32, 32), (NUM_TRAIN, NUM_TEST)),
    "cifar10": (
        write_cifar10,
        f"CIFAR10/cifar-10-batches-py/{TEST_NAME}",
        (3, 32, 32),
        (5 * TRAIN_PER_FILE, TRAIN_PER_FILE),
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_found_in_the_layouts_of_torchvision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, file, shape, sizes = WRITERS[name]
    write(tmp_path / "data")
    directory = (tmp_path / "data" / file).parent
    for root in (tmp_path / "data", directory, directory.parent):
        dataset = load(name, root)
        assert (len(dataset.train), len(dataset.test)) == sizes
        assert dataset.spec.image_shape == shape
        assert get_stream(dataset.train, "image").dtype == torch.uint8
        assert get_stream(dataset.train, "label").dtype == torch.int64
        assert len(dataset.class_names) == (47 if name == "emnist" else 10)
    monkeypatch.setenv("GENEXP_DATA", str(tmp_path / "data"))
    assert torch.equal(get_stream(load(name).test, "image"), get_stream(dataset.test, "image"))


def test_labels_and_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    for name in WRITERS:
        WRITERS[name][0](tmp_path)
    raw = np.frombuffer((tmp_path / WRITERS["emnist"][1]).read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    assert np.array_equal(get_stream(load("emnist", tmp_path).train, "image")[:, 0], raw.transpose(0, 2, 1))
    assert get_stream(load("qmnist", tmp_path).test, "label").tolist() == list(range(10))
    assert get_stream(load("svhn", tmp_path).test, "label").tolist() == [*range(1, 10), 0]
    cifar10 = load("cifar10", tmp_path)
    assert get_stream(cifar10.test, "label").tolist() == [5, 6, 7, 8, 9, 0, 1, 2]
    content = (tmp_path / WRITERS["cifar10"][1]).read_bytes()
    assert get_stream(cifar10.test, "image").numpy().tobytes() in content


def test_emnist_has_six_selections(tmp_path: Path) -> None:
    assert {split: len(names) for split, names in CLASSES_BY_SPLIT.items()} == {
        "byclass": 62,
        "bymerge": 47,
        "balanced": 47,
        "letters": 26,
        "digits": 10,
        "mnist": 10,
    }
    write_emnist(tmp_path, "letters")
    letters = load("emnist", tmp_path, split="letters")
    assert get_stream(letters.train, "label").tolist() == [*range(10), *range(10)]  # 1 … in the file
    assert letters.class_names[0] == "a"
    arguments = ("dataset=emnist", "dataset.split=letter", format_run_dir_override(tmp_path / "run"))
    assert "dataset.split=letter: must be one of byclass, " in get_error_line(run_genexp(*arguments), "genexp")


@pytest.mark.parametrize("content", [b"", b"\x80", b"MATLAB 5.0 MAT-file" + bytes(200), b"(dp0\n."])
@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    write, file, _, _ = WRITERS[name]
    write(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match="Replace the file by a complete copy") as excinfo:
        load(name, tmp_path)
    assert str(tmp_path / file) in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


class Code:
    """Object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_of_cifar10_run_no_code(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / WRITERS["cifar10"][1]
    path.write_bytes(pickle.dumps({"data": Code(tmp_path / "touched"), "labels": []}))
    with pytest.raises(DataError, match=r"it names .*touch"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "touched").exists()


def test_files_of_python3_and_unequal_numbers(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / WRITERS["cifar10"][1]
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"data": make_pixels(4, 3072), "labels": [0, 1, 2, 3]}, protocol=protocol))
        assert len(load("cifar10", tmp_path).test) == 4
    for labels, message in (([0, 1, 2], "4 images and 3 labels"), ([0, 1, 2, 10], "contains the label 10")):
        path.write_bytes(pickle.dumps({"data": make_pixels(4, 3072), "labels": labels}))
        with pytest.raises(DataError, match=message):
            load("cifar10", tmp_path)
    savemat(tmp_path / "train_32x32.mat", {"X": make_pixels(4, 8, 8, 3), "y": np.zeros((4, 1))})
    savemat(tmp_path / "test_32x32.mat", {"X": make_pixels(4, 8, 8, 3), "y": np.zeros((4, 1))})
    with pytest.raises(DataError, match="not images"):
        load("svhn", tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_downloads_are_cached_and_missing_ones_are_one_line(
    name: str, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genexp.images.vision import torchvision

    class_name = {"cifar10": "CIFAR10"}.get(name, name.upper())
    with pytest.raises(DataError, match=f"^dataset={name}: not found in .* Set dataset.root or") as excinfo:
        load(name)
    assert "\n" not in str(excinfo.value)
    assert list(isolated_cache.iterdir()) == []
    calls: list[dict[str, Any]] = []

    def fake(root: str, *, download: bool, **options: Any) -> None:
        if not calls:
            WRITERS[name][0](Path(root))
        calls.append(options)

    monkeypatch.setattr(torchvision.datasets, class_name, fake)
    sizes = [(len(dataset.train), len(dataset.test)) for dataset in (load(name), load(name))]
    assert sizes == [WRITERS[name][3]] * 2
    expected: dict[str, list[dict[str, str]]] = {
        "qmnist": [{"what": "train"}, {"what": "test"}],
        "svhn": [{"split": "train"}, {"split": "test"}],
        "emnist": [{"split": "balanced"}],
    }
    assert calls == expected.get(name, [{}])


@pytest.mark.parametrize("model", ["conv_autoencoder", "vae", "dcgan", "flow_matching", "vq_vae"])
def test_techniques_train_on_color_images(model: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    extra = ["model.network=conv"] if model == "vae" else []
    arguments = (*make_tiny_overrides(model), "dataset=cifar10", f"dataset.root={tmp_path}", *extra)
    # Without an evaluation, which would train a classifier.
    limits = ("trainer.max_steps=2", "trainer.evaluate_every=0", format_run_dir_override(tmp_path / "run"))
    result = run_genexp(*arguments, *limits)
    assert result.exit_code == 0, result.stderr
    assert load_status(tmp_path / "run")["step"] == 2
