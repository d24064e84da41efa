"""Fingerprints of data sets."""

from __future__ import annotations

import torch

from genexp.data.dataset import Dataset, Split, fingerprint


def test_fingerprint_changes_with_the_data() -> None:
    images = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(50)

    def compute_fingerprint(pixels: torch.Tensor) -> dict[str, str]:
        split = Split({"image": pixels, "label": labels})
        return fingerprint(Dataset("some", split, split))

    other = images.clone()
    other[17, 0, 2, 2] += 1
    assert compute_fingerprint(images) == compute_fingerprint(images.clone())
    assert compute_fingerprint(images) != compute_fingerprint(other)
    assert compute_fingerprint(images)["train"].startswith("50 samples, checksum ")
