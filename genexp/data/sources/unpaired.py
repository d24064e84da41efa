"""Two image directories as two unpaired domains."""

from __future__ import annotations

from dataclasses import dataclass

from genexp.config import require
from genexp.data.dataset import Dataset, Split
from genexp.data.registry import register_dataset
from genexp.data.sources._directories import ImageDirectoriesConfig, scan_directory, split_by_hash, subset_and_load
from genexp.data.sources._image_files import ImageFileStream
from genexp.errors import DataError


@register_dataset("unpaired")
@dataclass
class UnpairedConfig(ImageDirectoriesConfig):
    """conf/dataset/unpaired.yaml."""

    a: str | None  # directory of domain a; required
    b: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("a", "b"):
            require(getattr(self, key) is not None, key, "null", "must be a directory of images")

    def load(self) -> Dataset:
        """Return the streams "a" and "b", uint8 (n, channels, size, size), not aligned. Raises DataError."""
        assert self.a is not None
        assert self.b is not None
        train: dict[str, ImageFileStream] = {}
        test: dict[str, ImageFileStream] = {}
        warnings: tuple[str, ...] = ()
        for key, directory in (("a", self.a), ("b", self.b)):
            image_directory = scan_directory(directory, key)
            if len(image_directory.paths) < 2:
                raise DataError(
                    f"dataset.{key}={directory}: one readable image, at least 2 are required. Add images."
                )
            train_paths, test_paths = split_by_hash(
                image_directory.paths, image_directory.get_relative_stem, self.test_fraction
            )
            train[key] = ImageFileStream(train_paths, self.size, self.channels)
            test[key] = ImageFileStream(test_paths, self.size, self.channels)
            warnings += image_directory.warnings
        dataset = Dataset(
            self.name, Split(train, is_aligned=False), Split(test, is_aligned=False), warnings=warnings
        )
        return subset_and_load(dataset, self)
