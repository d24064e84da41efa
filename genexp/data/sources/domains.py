"""An unpaired task made from any images: one domain is the images, the other the images changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genexp.config import require
from genexp.data.dataset import Dataset, Split
from genexp.data.registry import source
from genexp.data.sampling import shuffled
from genexp.data.sources._derived import Change, DerivedConfig, derived
from genexp.data.subset import take

PAPER, INK = (24.0, 32.0, 80.0), (255.0, 160.0, 40.0)  # RGB of what was black and white


def unchanged(images: Tensor) -> Tensor:
    """Return the images."""
    return images


def inverted(images: Tensor) -> Tensor:
    """Return the negatives."""
    return 255 - images


def turned(images: Tensor) -> Tensor:
    """Return the images upside down, turned by 180 degrees."""
    return images.flip(-1, -2)


def grey(images: Tensor) -> Tensor:
    """Return the images without colour, in three equal channels."""
    return images.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def coloured(images: Tensor) -> Tensor:
    """Return colour images as they are, and grey ones in two colours: (n, 3, h, w)."""
    if images.shape[1] == 3:
        return images
    paper, ink = (torch.tensor(colour).view(3, 1, 1) for colour in (PAPER, INK))
    return torch.lerp(paper, ink, images / 255).round().to(torch.uint8)


CHANGES: dict[str, tuple[Change, Change]] = {  # how domain a, and how domain b is made of an image
    "invert": (unchanged, inverted),
    "colour": (grey, coloured),
    "rotate": (unchanged, turned),
}


@dataclass
class DomainsConfig(DerivedConfig):
    """conf/dataset/domains.yaml."""

    change: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.change in CHANGES, "change", self.change, f"choose one of {', '.join(CHANGES)}")


@source("domains", DomainsConfig)
def load(config: DomainsConfig) -> Dataset:
    """Return the streams "a" and "b", which have no image in common and are not aligned.

    In the test split they are, and "a_as_b" and "b_as_a" hold what a perfect translation would give.
    """
    origin = config.load_source(None if config.limit is None else 2 * config.limit)
    in_a, in_b = CHANGES[config.change]
    images = origin.train.streams["image"]
    first, second = shuffled(len(images), "domains").tensor_split(2)
    train = Split(
        {"a": derived(take(images, first), in_a), "b": derived(take(images, second), in_b)}, aligned=False
    )
    held_out = origin.test.streams
    a, b = derived(held_out["image"], in_a), derived(held_out["image"], in_b)
    others = {name: stream for name, stream in held_out.items() if name != "image"}
    test = Split({"a": a, "b": b, "a_as_b": b, "b_as_a": a, **others})
    return Dataset(config.name, train, test, origin.class_names, origin.warnings)
