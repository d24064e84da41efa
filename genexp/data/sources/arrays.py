"""Images in a NumPy file, .npz or .npy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genexp.config import require
from genexp.data.dataset import Dataset
from genexp.data.registry import register_dataset
from genexp.data.sources._array_files import (
    ArrayFileConfig,
    encode_labels,
    load_arrays,
    select_array,
)
from genexp.data.sources._images import CHANNEL_COUNTS, ResizableConfig
from genexp.errors import DataError


@register_dataset("arrays")
@dataclass
class ArraysConfig(ArrayFileConfig, ResizableConfig):
    """conf/dataset/arrays.yaml."""

    image: str  # name of the images in a .npz file

    def __post_init__(self) -> None:
        super().__post_init__()
        suffix = Path(str(self.file)).suffix
        require(suffix in (".npy", ".npz"), "file", self.file, "must end in .npy or .npz")

    def load(self) -> Dataset:
        """Return the streams "image", uint8 (n, channels, height, width), and "label" if there are labels.

        The arrays "test_IMAGE" and "test_LABEL" are the test split, if the file has them. Otherwise a fraction of
        the samples is. Raises DataError.
        """
        arrays = load_arrays(self.path)
        if self.label is not None and "" in arrays:
            raise DataError(f"dataset.label={self.label}: a .npy file has images only. Use a .npz file.")
        images = _move_channels(arrays[""] if "" in arrays else select_array(arrays, self.image, "dataset.image"))
        has_labels = self.label is not None
        labels = select_array(arrays, str(self.label), "dataset.label") if has_labels else None
        if labels is not None and len(labels) != len(images):
            raise DataError(
                f"dataset.file={self.file}: {len(images)} images and {len(labels)} labels. Correct the file."
            )
        if f"test_{self.image}" in arrays:
            test_images = _move_channels(arrays[f"test_{self.image}"])
            test_labels = select_array(arrays, f"test_{self.label}", "dataset.label") if has_labels else None
            return self._build(images, labels, test_images, test_labels)
        codes = None if labels is None else encode_labels(labels)[0]
        train, test = (rows.numpy() for rows in self.split_rows(len(images), codes))
        parts = [(images[rows], None if labels is None else labels[rows]) for rows in (train, test)]
        return self._build(*parts[0], *parts[1])

    def _build(self, images: Any, labels: Any, test_images: Any, test_labels: Any) -> Dataset:
        try:
            return self._build_dataset(images, labels, test_images, test_labels)
        except DataError as error:
            raise DataError(f"dataset.file={self.file}: {error}") from None

    def _build_dataset(self, images: Any, labels: Any, test_images: Any, test_labels: Any) -> Dataset:
        if labels is None:
            return Dataset.from_arrays({"image": images}, {"image": test_images})
        codes, names = encode_labels([*labels.tolist(), *test_labels.tolist()])
        return Dataset.from_arrays(
            {"image": images, "label": codes[: len(labels)]},
            {"image": test_images, "label": codes[len(labels) :]},
            class_names=names,
        )


def _move_channels(images: Any) -> Any:
    """Return images with the channels before height and width, if they are last."""
    is_last = images.ndim == 4 and images.shape[3] in CHANNEL_COUNTS and images.shape[1] not in CHANNEL_COUNTS
    return images.transpose(0, 3, 1, 2).copy() if is_last else images
