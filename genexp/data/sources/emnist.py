"""EMNIST: handwritten letters and digits, 28×28 pixels, in six selections (Cohen et al. 2017)."""

from __future__ import annotations

import string
from dataclasses import dataclass

from genexp.config import require
from genexp.data.dataset import Dataset
from genexp.data.registry import register_dataset
from genexp.data.sources._mnist import IdxDataset, load_idx_dataset
from genexp.data.sources._torchvision import DataFiles, TorchvisionConfig

MERGED_LETTERS = "cijklmopsuvwxyz"  # whose lower case is in the class of the capital
ALL_CLASSES = (*string.digits, *string.ascii_uppercase, *string.ascii_lowercase)
MERGED_CLASSES = tuple(name for name in ALL_CLASSES if name not in MERGED_LETTERS)
CLASSES_BY_SPLIT = {
    "byclass": ALL_CLASSES,
    "bymerge": MERGED_CLASSES,
    "balanced": MERGED_CLASSES,
    "letters": tuple(string.ascii_lowercase),
    "digits": tuple(string.digits),
    "mnist": tuple(string.digits),
}


@register_dataset("emnist")
@dataclass
class EmnistConfig(TorchvisionConfig):
    """conf/dataset/emnist.yaml."""

    split: str  # key of CLASSES_BY_SPLIT

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.split in CLASSES_BY_SPLIT, "split", self.split, f"must be one of {', '.join(CLASSES_BY_SPLIT)}"
        )

    def load(self) -> Dataset:
        """Return upright images (n, 1, 28, 28) of the selection `split`. Raises DataError."""
        names = tuple(
            f"emnist-{self.split}-{part}-{content}-ubyte"
            for part in ("train", "test")
            for content in ("images-idx3", "labels-idx1")
        )
        files = DataFiles("EMNIST", "EMNIST/raw", names, downloads=({"split": self.split},))
        first_label = 1 if self.split == "letters" else 0
        idx_dataset = IdxDataset(files, CLASSES_BY_SPLIT[self.split], first_label=first_label, is_transposed=True)
        return load_idx_dataset(self, idx_dataset)
