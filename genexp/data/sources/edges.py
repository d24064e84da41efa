"""A paired task made from any images: the edges of a picture go in, the picture comes out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.data.dataset import Dataset, Split
from genexp.data.registry import source
from genexp.data.sources._derived import DerivedConfig, derived

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
STEP = 4.0  # what the filter answers to a step of 1


@dataclass
class EdgesConfig(DerivedConfig):
    """conf/dataset/edges.yaml."""


@source("edges", EdgesConfig)
def load(config: EdgesConfig) -> Dataset:
    """Return the streams "input", (n, 1, h, w), "target", the images themselves, and their labels, if any."""
    origin = config.load_source(config.limit)
    train, test = (_paired(split) for split in (origin.train, origin.test))
    return Dataset(config.name, train, test, origin.class_names, origin.warnings)


def _paired(split: Split) -> Split:
    others = {name: stream for name, stream in split.streams.items() if name != "image"}
    images = split.streams["image"]
    return Split({"input": derived(images, sobel_edges), "target": images, **others})


def sobel_edges(images: Tensor) -> Tensor:
    """Return how steep the brightness is: uint8 (n, channels, h, w) → (n, 1, h, w).

    255 is a step from black to white.
    """
    grey = F.pad(images.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor(SOBEL, dtype=grey.dtype) / STEP
    slopes = F.conv2d(grey, torch.stack([across, across.T])[:, None])  # (n, 2, h, w)
    return slopes.norm(dim=1, keepdim=True).round().clamp(0, 255).to(torch.uint8)
