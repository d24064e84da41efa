"""Pairs of pictures: two folders with equal file names, or one folder of pictures side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genexp.config import require
from genexp.data.dataset import Dataset, Split
from genexp.data.registry import source
from genexp.data.sources._directories import FoldersConfig, held_out, loaded, open_folder
from genexp.data.sources._image_files import WHOLE, Part, PictureFiles
from genexp.errors import DataError

HALVES: dict[str, tuple[Part, Part]] = {  # where the input is → the parts of the input and of the target
    "left": ((0.0, 0.5), (0.5, 1.0)),
    "right": ((0.5, 1.0), (0.0, 0.5)),
}
Pair = tuple[Path, Path]


@dataclass
class PairsConfig(FoldersConfig):
    """conf/dataset/pairs.yaml."""

    root: str | None
    input_side: str
    input: str | None
    target: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        one, two = self.root is not None, self.input is not None and self.target is not None
        remedy = "set it to a folder of pictures side by side, or set dataset.input and dataset.target instead"
        require(one != two, "root", self.root or "null", remedy)
        require(self.input_side in HALVES, "input_side", self.input_side, f"choose one of {', '.join(HALVES)}")


@source("pairs", PairsConfig)
def load(config: PairsConfig) -> Dataset:
    """Return the streams "input" and "target", uint8 (n, channels, size, size), aligned. Raises DataError."""
    pairs, warnings = _side_by_side(config) if config.root is not None else _by_name(config)
    if len(pairs) < 2:
        raise DataError(
            f"dataset=pairs finds {len(pairs)} pairs; one to learn from and one to test on are the least: "
            f"add pictures, or choose other folders"
        )
    parts = HALVES[config.input_side] if config.root is not None else (WHOLE, WHOLE)
    train, test = (
        Split(
            {
                name: PictureFiles([pair[side] for pair in some], config.size, config.channels, parts[side])
                for side, name in enumerate(("input", "target"))
            }
        )
        for some in held_out(pairs, lambda pair: pair[0].stem, config.test_fraction)
    )
    return loaded(Dataset(config.name, train, test, warnings=warnings), config)


def _side_by_side(config: PairsConfig) -> tuple[list[Pair], tuple[str, ...]]:
    assert config.root is not None
    folder = open_folder(config.root, "root")
    return [(path, path) for path in folder.paths], folder.warnings


def _by_name(config: PairsConfig) -> tuple[list[Pair], tuple[str, ...]]:
    """Return the pictures that have a namesake in the other folder, and a warning about the others."""
    assert config.input is not None
    assert config.target is not None
    first, second = open_folder(config.input, "input"), open_folder(config.target, "target")
    inputs = {first.name(path): path for path in first.paths}
    targets = {second.name(path): path for path in second.paths}
    common = sorted(inputs.keys() & targets.keys())
    alone = sorted(inputs.keys() ^ targets.keys())
    said = f"{len(alone)} pictures have no namesake in the other folder and are left out: {', '.join(alone[:5])}"
    if not common:
        raise DataError(f"dataset.input={config.input} and dataset.target={config.target} share no file names")
    warnings = (*first.warnings, *second.warnings, *([said] if alone else []))
    return [(inputs[name], targets[name]) for name in common], warnings
