"""MNIST and Fashion-MNIST: where they are found, what is refused, how they are downloaded."""

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

from genexp.data import load_dataset
from genexp.data.dataset import Dataset
from genexp.data.sources import _mnist
from genexp.data.sources._idx import read_idx
from genexp.errors import DataError
from tests.support.command import REAL_DATA

needs_real = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"needs MNIST and Fashion-MNIST in {REAL_DATA}")

TRAIN, TEST = 30, 12


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty cache, no variable, no system folder and no network; return the cache."""
    cache = tmp_path / "cache"
    monkeypatch.delenv("GENEXP_DATA", raising=False)
    monkeypatch.setattr(_mnist, "get_cache_dir", lambda: cache)
    debian = _mnist.IDX_DATASETS["fashion_mnist"]
    nowhere = replace(debian, system_dirs=(tmp_path / "debian",))
    monkeypatch.setitem(_mnist.IDX_DATASETS, "fashion_mnist", nowhere)
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    return cache


def _no_network(*args: Any, **kwargs: Any) -> Any:
    raise URLError("Name or service not known")


def load(name: str = "mnist", root: Path | None = None) -> Dataset:
    return load_dataset(
        {"name": name, "limit": None, "resident_gb": 4.0, "root": None if root is None else str(root)}
    )


def idx(*sizes: int, values: bytes | None = None) -> bytes:
    """Return a sound idx file of zeros, or of `values`."""
    count = 1
    for size in sizes:
        count *= size
    return bytes((0, 0, 8, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes) + (values or bytes(count))


def write_set(folder: Path, *, packed: bool = False, train: int = TRAIN) -> Path:
    """Write four small files, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("t10k", TEST)):
        labels = bytes(i % 10 for i in range(count))
        for kind, content in (("images-idx3", idx(count, 4, 4)), ("labels-idx1", idx(count, values=labels))):
            path = folder / f"{name}-{kind}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return folder


def sizes(dataset: Dataset) -> tuple[int, int]:
    return len(dataset.train), len(dataset.test)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["MNIST/raw", "raw", "."])
def test_a_root_may_have_any_layout(tmp_path: Path, layout: str, packed: bool) -> None:
    write_set(tmp_path / "root" / layout, packed=packed)
    assert sizes(load(root=tmp_path / "root")) == (TRAIN, TEST)


def test_the_variable_comes_before_the_cache(
    tmp_path: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(isolated / "FashionMNIST" / "raw", train=20)
    assert sizes(load("fashion_mnist")) == (20, TEST)
    write_set(tmp_path / "variable")
    monkeypatch.setenv("GENEXP_DATA", str(tmp_path / "variable"))
    assert sizes(load("fashion_mnist")) == (TRAIN, TEST)


def test_debians_folder_is_searched_for_fashion_only(tmp_path: Path) -> None:
    write_set(tmp_path / "debian", packed=True)
    assert sizes(load("fashion_mnist")) == (TRAIN, TEST)
    with pytest.raises(DataError, match="its download failed"):
        load("mnist")


def test_a_root_without_the_files_is_not_replaced_by_another_place(tmp_path: Path, isolated: Path) -> None:
    write_set(isolated / "MNIST" / "raw")
    (write_set(tmp_path / "root") / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"dataset.root=.*root lacks .*; correct it, or set dataset.root=null"):
        load(root=tmp_path / "root")


DAMAGES = {
    "a truncated file": (lambda content: content[:-1], "is truncated: its header says 30×4×4 bytes, 479 follow"),
    "a file that is too long": (lambda content: content + b"x", "is too long"),
    "a wrong magic number": (lambda content: b"\x89PNG" + content[4:], "begins with 89504e47, not 00000803"),
    "an empty file": (lambda content: b"", "begins with nothing"),
    "a cut header": (lambda content: content[:9], "ends within its header"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_its_file_and_remedy(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    path = write_set(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=f"^{path} {message}.*; replace the file by a whole copy"):
        load(root=tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(idx(TRAIN, 4, 4))[:-9], gzip.compress(b"x" * 99)[:20]],
    ids=["no archive", "a cut end", "a cut middle"],  # an archive bears the time of its making
)
def test_a_damaged_archive_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = write_set(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path} cannot be read .*; replace the file"):
        load(root=tmp_path)


def test_a_flipped_byte_in_an_archive_is_a_data_error(tmp_path: Path) -> None:
    path = write_set(tmp_path, packed=True) / "train-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz"):
        load(root=tmp_path)


def test_images_and_labels_must_be_as_many(tmp_path: Path) -> None:
    (write_set(tmp_path) / "train-labels-idx1-ubyte").write_bytes(idx(29))
    with pytest.raises(DataError, match=r"has 30 images, .* 29 labels; replace"):
        load(root=tmp_path)


def test_a_label_without_a_class_is_refused(tmp_path: Path) -> None:
    (write_set(tmp_path) / "t10k-labels-idx1-ubyte").write_bytes(idx(TEST, values=bytes([12] * TEST)))
    with pytest.raises(DataError, match="has the label 12 among 10 classes"):
        load(root=tmp_path)


def test_no_network_gives_one_line_with_the_places_and_the_ways_out(isolated: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("fashion_mnist")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        *("$GENEXP_DATA (not set)", str(isolated), "debian"),
        *("Name or service not known", "dataset.root=FOLDER", "GENEXP_DATA", "dataset=mnist_5k"),
    ):
        assert part in message
    assert list(isolated.iterdir()) == []  # nothing that could be taken for the data later
    assert socket.getdefaulttimeout() is None


def test_an_unwritable_cache_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(_mnist, "get_cache_dir", lambda: tmp_path / "file" / "cache")
    with pytest.raises(DataError, match="its download failed"):
        load()


class Download:
    """Stands in for torchvision.datasets.MNIST: writes the files into `root`, or breaks half-way."""

    calls = 0
    breaks = False

    def __init__(self, root: str, download: bool) -> None:
        assert download
        type(self).calls += 1
        folder = write_set(Path(root) / "MNIST" / "raw")
        if self.breaks:
            (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")
            raise ConnectionResetError("connection reset")


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> type[Download]:
    from genexp.images.vision import torchvision

    fresh: type[Download] = type("Fresh", (Download,), {})
    monkeypatch.setattr(torchvision.datasets, "MNIST", fresh)
    return fresh


def test_a_download_is_kept_for_the_next_run(download: type[Download], isolated: Path) -> None:
    assert sizes(load()) == sizes(load()) == (TRAIN, TEST)
    assert download.calls == 1
    assert [path.name for path in isolated.iterdir()] == ["MNIST"]


def test_a_broken_download_is_not_taken_for_good(download: type[Download], isolated: Path) -> None:
    download.breaks = True
    with pytest.raises(DataError, match="connection reset"):
        load()
    assert list(isolated.iterdir()) == []
    download.breaks = False
    assert sizes(load()) == (TRAIN, TEST)


def test_a_download_completes_an_incomplete_folder(download: type[Download], isolated: Path) -> None:
    (write_set(isolated / "MNIST" / "raw") / "train-labels-idx1-ubyte").unlink()
    assert sizes(load()) == (TRAIN, TEST)


def test_a_download_is_complete_when_another_process_was_faster(
    download: type[Download], isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = _mnist._move_into_place

    def overtaken(source: Path, target: Path) -> None:
        write_set(target / "raw")
        move(source, target)

    monkeypatch.setattr(_mnist, "_move_into_place", overtaken)
    assert sizes(load()) == (TRAIN, TEST)


@needs_real
@pytest.mark.parametrize(
    ("name", "folder", "brightness", "last_class"),
    [("mnist", "MNIST", 33.3, "9"), ("fashion_mnist", "FashionMNIST", 72.9, "Ankle boot")],
)
def test_the_real_sets_are_whole(name: str, folder: str, brightness: float, last_class: str) -> None:
    dataset = load(name, REAL_DATA)
    assert sizes(dataset) == (60000, 10000)
    images = dataset.train.streams["image"]
    assert isinstance(images, Tensor)
    assert images.dtype == torch.uint8
    assert images.float().mean().item() == pytest.approx(brightness, abs=0.1)
    assert dataset.class_names[-1] == last_class
    assert torch.equal(images[:, 0], read_idx(REAL_DATA / folder / "raw" / "train-images-idx3-ubyte.gz", 3))


@needs_real
def test_one_set_is_not_taken_for_the_other(tmp_path: Path) -> None:
    write_set(tmp_path)
    for part in ("images-idx3", "labels-idx1"):
        name = f"t10k-{part}-ubyte"
        (tmp_path / name).unlink()
        shutil.copy(REAL_DATA / "FashionMNIST" / "raw" / f"{name}.gz", tmp_path)
    with pytest.raises(DataError, match="holds fashion_mnist, not MNIST"):
        load("mnist", tmp_path)
