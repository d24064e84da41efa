"""Two folders of pictures, each a domain of its own; no picture belongs to any in the other."""

from __future__ import annotations

from dataclasses import dataclass

from genexp.config import require
from genexp.data.dataset import Dataset, Split
from genexp.data.registry import source
from genexp.data.sources._directories import FoldersConfig, held_out, loaded, open_folder
from genexp.data.sources._image_files import PictureFiles
from genexp.errors import DataError


@dataclass
class UnpairedConfig(FoldersConfig):
    """conf/dataset/unpaired.yaml."""

    a: str | None
    b: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("a", "b"):
            require(getattr(self, key) is not None, key, "null", "set it to a folder of pictures")


@source("unpaired", UnpairedConfig)
def load(config: UnpairedConfig) -> Dataset:
    """Return the streams "a" and "b", uint8 (n, channels, size, size), not aligned. Raises DataError."""
    assert config.a is not None
    assert config.b is not None
    train: dict[str, PictureFiles] = {}
    test: dict[str, PictureFiles] = {}
    warnings: tuple[str, ...] = ()
    for key, name in (("a", config.a), ("b", config.b)):
        folder = open_folder(name, key)
        if len(folder.paths) < 2:
            raise DataError(f"dataset.{key}={name} has one readable picture; two are the least: add pictures")
        learned, kept_back = held_out(folder.paths, folder.name, config.test_fraction)
        train[key] = PictureFiles(learned, config.size, config.channels)
        test[key] = PictureFiles(kept_back, config.size, config.channels)
        warnings += folder.warnings
    dataset = Dataset(config.name, Split(train, aligned=False), Split(test, aligned=False), warnings=warnings)
    return loaded(dataset, config)
