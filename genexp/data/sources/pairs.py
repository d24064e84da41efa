"""Image pairs: two directories with equal file names, or one directory of side-by-side images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genexp.config import require
from genexp.data.dataset import Dataset, Split
from genexp.data.registry import register_dataset
from genexp.data.sources._directories import ImageDirectoriesConfig, scan_directory, split_by_hash, subset_and_load
from genexp.data.sources._image_files import FULL_WIDTH, CropRange, ImageFileStream
from genexp.errors import DataError

# side of the input → crops of the input and of the target
CROPS_BY_INPUT_SIDE: dict[str, tuple[CropRange, CropRange]] = {
    "left": ((0.0, 0.5), (0.5, 1.0)),
    "right": ((0.5, 1.0), (0.0, 0.5)),
}
ImagePair = tuple[Path, Path]


@register_dataset("pairs")
@dataclass
class PairsConfig(ImageDirectoriesConfig):
    """conf/dataset/pairs.yaml."""

    root: str | None  # directory of side-by-side images
    input_side: str  # side of the input in these images: "left" or "right"
    input: str | None  # directory of the inputs, used with `target` instead of `root`
    target: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        has_root, has_directories = self.root is not None, self.input is not None and self.target is not None
        rule = "must be a directory of images side by side, unless dataset.input and dataset.target are set"
        require(has_root != has_directories, "root", self.root or "null", rule)
        require(
            self.input_side in CROPS_BY_INPUT_SIDE,
            "input_side",
            self.input_side,
            f"must be one of {', '.join(CROPS_BY_INPUT_SIDE)}",
        )

    def load(self) -> Dataset:
        """Return the streams "input" and "target", uint8 (n, channels, size, size), aligned. Raises DataError."""
        pairs, warnings = _list_side_by_side(self) if self.root is not None else _match_by_name(self)
        if len(pairs) < 2:
            raise DataError(
                f"dataset=pairs: {len(pairs)} pairs found, at least 2 are required. "
                f"Add images, or use other directories."
            )
        crops = CROPS_BY_INPUT_SIDE[self.input_side] if self.root is not None else (FULL_WIDTH, FULL_WIDTH)
        train, test = (
            Split(
                {
                    name: ImageFileStream(
                        [pair[side] for pair in split_pairs], self.size, self.channels, crops[side]
                    )
                    for side, name in enumerate(("input", "target"))
                }
            )
            for split_pairs in split_by_hash(pairs, lambda pair: pair[0].stem, self.test_fraction)
        )
        return subset_and_load(Dataset(self.name, train, test, warnings=warnings), self)


def _list_side_by_side(config: PairsConfig) -> tuple[list[ImagePair], tuple[str, ...]]:
    assert config.root is not None
    image_directory = scan_directory(config.root, "root")
    return [(path, path) for path in image_directory.paths], image_directory.warnings


def _match_by_name(config: PairsConfig) -> tuple[list[ImagePair], tuple[str, ...]]:
    """Return the images with equal names in both directories, and warnings about the others. Raises DataError."""
    assert config.input is not None
    assert config.target is not None
    input_directory, target_directory = (
        scan_directory(config.input, "input"),
        scan_directory(config.target, "target"),
    )
    inputs = {input_directory.get_relative_stem(path): path for path in input_directory.paths}
    targets = {target_directory.get_relative_stem(path): path for path in target_directory.paths}
    common = sorted(inputs.keys() & targets.keys())
    unmatched = sorted(inputs.keys() ^ targets.keys())
    names = ", ".join(unmatched[:5])
    warning = f"{len(unmatched)} images are skipped, because the other directory has no file of this name: {names}"
    if not common:
        raise DataError(
            f"dataset.input={config.input} and dataset.target={config.target}: no common file names. "
            "Use directories with equal file names."
        )
    warnings = (*input_directory.warnings, *target_directory.warnings, *([warning] if unmatched else []))
    return [(inputs[name], targets[name]) for name in common], warnings
