"""MNIST and Fashion-MNIST: search path, damaged files and download."""

from __future__ import annotations

import gzip
import shutil
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from genexp.data.dataset import Dataset
from genexp.data.sources import _mnist, _torchvision
from genexp.data.sources._idx import read_idx
from genexp.errors import DataError
from tests.support.command import REAL_DATA
from tests.support.datasets import load_values

needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason=f"needs MNIST and Fashion-MNIST in {REAL_DATA}"
)

NUM_TRAIN, NUM_TEST = 30, 12


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache, without environment variable, system directory and network."""
    cache = tmp_path / "cache"
    monkeypatch.delenv("GENEXP_DATA", raising=False)
    monkeypatch.setattr(_torchvision, "get_cache_dir", lambda: cache)
    fashion_mnist = _mnist.IDX_DATASETS["fashion_mnist"]
    files = replace(fashion_mnist.files, system_dirs=(tmp_path / "debian",))
    without_system_dirs = replace(fashion_mnist, files=files)
    monkeypatch.setitem(_mnist.IDX_DATASETS, "fashion_mnist", without_system_dirs)
    monkeypatch.setattr("urllib.request.urlopen", _raise_no_network)
    return cache


def _raise_no_network(*args: Any, **kwargs: Any) -> Any:
    raise URLError("Name or service not known")


def load(name: str = "mnist", root: Path | None = None) -> Dataset:
    return load_values(
        {"name": name, "limit": None, "resident_gb": 4.0, "root": None if root is None else str(root)}
    )


def encode_idx(*shape: int, values: bytes | None = None) -> bytes:
    """Return the content of a valid idx file of zeros, or of `values`."""
    count = 1
    for size in shape:
        count *= size
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + (values or bytes(count))


def write_idx_files(folder: Path, *, is_gzipped: bool = False, num_train: int = NUM_TRAIN) -> Path:
    """Write four small idx files and return their directory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", num_train), ("t10k", NUM_TEST)):
        labels = bytes(i % 10 for i in range(count))
        for kind, content in (
            ("images-idx3", encode_idx(count, 4, 4)),
            ("labels-idx1", encode_idx(count, values=labels)),
        ):
            path = folder / f"{name}-{kind}-ubyte"
            if is_gzipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return folder


def split_sizes(dataset: Dataset) -> tuple[int, int]:
    return len(dataset.train), len(dataset.test)


@pytest.mark.parametrize("is_gzipped", [False, True])
@pytest.mark.parametrize("layout", ["MNIST/raw", "raw", "."])
def test_root_may_have_any_directory_layout(tmp_path: Path, layout: str, is_gzipped: bool) -> None:
    write_idx_files(tmp_path / "root" / layout, is_gzipped=is_gzipped)
    assert split_sizes(load(root=tmp_path / "root")) == (NUM_TRAIN, NUM_TEST)


def test_genexp_data_variable_precedes_the_cache(
    tmp_path: Path, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx_files(isolated_cache / "FashionMNIST" / "raw", num_train=20)
    assert split_sizes(load("fashion_mnist")) == (20, NUM_TEST)
    write_idx_files(tmp_path / "variable")
    monkeypatch.setenv("GENEXP_DATA", str(tmp_path / "variable"))
    assert split_sizes(load("fashion_mnist")) == (NUM_TRAIN, NUM_TEST)


def test_debian_directory_is_used_only_for_fashion_mnist(tmp_path: Path) -> None:
    write_idx_files(tmp_path / "debian", is_gzipped=True)
    assert split_sizes(load("fashion_mnist")) == (NUM_TRAIN, NUM_TEST)
    with pytest.raises(DataError, match="its download failed"):
        load("mnist")


def test_incomplete_root_does_not_fall_back_to_the_cache(tmp_path: Path, isolated_cache: Path) -> None:
    write_idx_files(isolated_cache / "MNIST" / "raw")
    (write_idx_files(tmp_path / "root") / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        DataError, match=r"dataset.root=.*root: no .*. Use another directory, or dataset.root=null"
    ):
        load(root=tmp_path / "root")


DAMAGED_FILES = {
    "a truncated file": (lambda content: content[:-1], "truncated, its header states 30×4×4 bytes, 479 follow"),
    "a file that is too long": (lambda content: content + b"x", "too long"),
    "a wrong magic number": (lambda content: b"\x89PNG" + content[4:], "begins with 89504e47, not 00000803"),
    "an empty file": (lambda content: b"", "begins with nothing"),
    "a cut header": (lambda content: content[:9], "incomplete header"),
}


@pytest.mark.parametrize("damage", DAMAGED_FILES)
def test_damaged_file_is_reported_with_its_path_and_remedy(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGED_FILES[damage]
    path = write_idx_files(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=f"^{path}: {message}.*. Replace the file by a complete copy"):
        load(root=tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(encode_idx(NUM_TRAIN, 4, 4))[:-9], gzip.compress(encode_idx(NUM_TRAIN, 4, 4))[:20]],
    ids=["no archive", "a cut end", "a cut middle"],  # fixed ids: an archive contains its creation time
)
def test_a_damaged_archive_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = write_idx_files(tmp_path, is_gzipped=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: not readable .*. Replace the file"):
        load(root=tmp_path)


def test_a_flipped_byte_in_an_archive_is_a_data_error(tmp_path: Path) -> None:
    path = write_idx_files(tmp_path, is_gzipped=True) / "train-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz"):
        load(root=tmp_path)


def test_numbers_of_images_and_labels_must_match(tmp_path: Path) -> None:
    (write_idx_files(tmp_path) / "train-labels-idx1-ubyte").write_bytes(encode_idx(29))
    with pytest.raises(DataError, match=r"30 images, but .* has 29 labels. Replace"):
        load(root=tmp_path)


def test_label_without_a_class_is_rejected(tmp_path: Path) -> None:
    (write_idx_files(tmp_path) / "t10k-labels-idx1-ubyte").write_bytes(
        encode_idx(NUM_TEST, values=bytes([12] * NUM_TEST))
    )
    with pytest.raises(DataError, match="contains the label 12, but there are 10 classes"):
        load(root=tmp_path)


def test_missing_network_error_lists_searched_paths_and_remedies(isolated_cache: Path) -> None:
    with pytest.raises(DataError) as excinfo:
        load("fashion_mnist")
    message = str(excinfo.value)
    assert "\n" not in message
    for part in (
        *("$GENEXP_DATA (not set)", str(isolated_cache), "debian"),
        *("Name or service not known", "Set dataset.root or $GENEXP_DATA", "GENEXP_DATA", "dataset=mnist_5k"),
    ):
        assert part in message
    assert list(isolated_cache.iterdir()) == []  # no partial files are left
    assert socket.getdefaulttimeout() is None


def test_an_unwritable_cache_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(_torchvision, "get_cache_dir", lambda: tmp_path / "file" / "cache")
    with pytest.raises(DataError, match="its download failed"):
        load()


class FakeTorchvisionMNIST:
    """Fake of torchvision.datasets.MNIST that writes the files into `root`, or fails half-way."""

    num_calls = 0
    should_fail = False

    def __init__(self, root: str, download: bool) -> None:
        assert download
        type(self).num_calls += 1
        folder = write_idx_files(Path(root) / "MNIST" / "raw")
        if self.should_fail:
            (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")
            raise ConnectionResetError("connection reset")


@pytest.fixture
def fake_download(monkeypatch: pytest.MonkeyPatch) -> type[FakeTorchvisionMNIST]:
    from genexp.images.vision import torchvision

    fresh: type[FakeTorchvisionMNIST] = type("Fresh", (FakeTorchvisionMNIST,), {})
    monkeypatch.setattr(torchvision.datasets, "MNIST", fresh)
    return fresh


def test_download_is_cached_for_the_next_run(
    fake_download: type[FakeTorchvisionMNIST], isolated_cache: Path
) -> None:
    assert split_sizes(load()) == split_sizes(load()) == (NUM_TRAIN, NUM_TEST)
    assert fake_download.num_calls == 1
    assert [path.name for path in isolated_cache.iterdir()] == ["MNIST"]


def test_broken_download_is_not_cached(fake_download: type[FakeTorchvisionMNIST], isolated_cache: Path) -> None:
    fake_download.should_fail = True
    with pytest.raises(DataError, match="connection reset"):
        load()
    assert list(isolated_cache.iterdir()) == []
    fake_download.should_fail = False
    assert split_sizes(load()) == (NUM_TRAIN, NUM_TEST)


def test_a_download_completes_an_incomplete_folder(
    fake_download: type[FakeTorchvisionMNIST], isolated_cache: Path
) -> None:
    (write_idx_files(isolated_cache / "MNIST" / "raw") / "train-labels-idx1-ubyte").unlink()
    assert split_sizes(load()) == (NUM_TRAIN, NUM_TEST)


def test_download_tolerates_a_faster_concurrent_process(
    fake_download: type[FakeTorchvisionMNIST], isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = _torchvision.move_into_place

    def move_after_other_process(source: Path, target: Path) -> None:
        write_idx_files(target)
        move(source, target)

    monkeypatch.setattr(_torchvision, "move_into_place", move_after_other_process)
    assert split_sizes(load()) == (NUM_TRAIN, NUM_TEST)


@needs_real_data
@pytest.mark.parametrize(
    ("name", "folder", "brightness", "last_class"),
    [("mnist", "MNIST", 33.3, "9"), ("fashion_mnist", "FashionMNIST", 72.9, "Ankle boot")],
)
def test_real_datasets_are_complete(name: str, folder: str, brightness: float, last_class: str) -> None:
    dataset = load(name, REAL_DATA)
    assert split_sizes(dataset) == (60000, 10000)
    images = dataset.train.streams["image"]
    assert isinstance(images, Tensor)
    assert images.dtype == torch.uint8
    assert images.float().mean().item() == pytest.approx(brightness, abs=0.1)
    assert dataset.class_names[-1] == last_class
    assert torch.equal(images[:, 0], read_idx(REAL_DATA / folder / "raw" / "train-images-idx3-ubyte.gz", 3))


@needs_real_data
def test_fashion_mnist_files_are_rejected_as_mnist(tmp_path: Path) -> None:
    write_idx_files(tmp_path)
    for part in ("images-idx3", "labels-idx1"):
        name = f"t10k-{part}-ubyte"
        (tmp_path / name).unlink()
        shutil.copy(REAL_DATA / "FashionMNIST" / "raw" / f"{name}.gz", tmp_path)
    with pytest.raises(DataError, match="contains fashion_mnist, not MNIST"):
        load("mnist", tmp_path)
