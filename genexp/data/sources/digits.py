"""Digits data set of scikit-learn: 1,797 handwritten digits of 8×8 pixels (Alpaydin & Kaynak 1998)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genexp.data.dataset import Dataset
from genexp.data.registry import register_dataset
from genexp.data.sources._images import HeldOutConfig
from genexp.data.sources._labeled_images import DIGIT_NAMES, make_labeled_dataset

TEST_COUNT = 360  # a fifth, 36 of each class


@register_dataset("digits")
@dataclass
class DigitsConfig(HeldOutConfig):
    """conf/dataset/digits.yaml."""

    def load(self) -> Dataset:
        """Return images (n, 1, 8, 8): 1,437 for training, 360 for test."""
        from sklearn.datasets import load_digits

        scans = load_digits()
        pixels = torch.from_numpy(scans.images)[:, None]  # (1797, 1, 8, 8), whole numbers 0 … 16
        images = (pixels * 255 / 16).round().to(torch.uint8)
        labels = torch.from_numpy(scans.target)
        return make_labeled_dataset(self.name, images, labels, test_count=TEST_COUNT, class_names=DIGIT_NAMES)
