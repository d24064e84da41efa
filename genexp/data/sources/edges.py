"""Paired image-to-image task from any images: Sobel edges as input, the image as target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.data.dataset import Dataset, Split
from genexp.data.registry import register_dataset
from genexp.data.sources._derived import DerivedConfig, transform_stream

SOBEL_KERNEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
SOBEL_STEP_RESPONSE = 4.0  # response of the Sobel filter to a step of 1


@register_dataset("edges")
@dataclass
class EdgesConfig(DerivedConfig):
    """conf/dataset/edges.yaml."""

    def load(self) -> Dataset:
        """Return the streams "input", uint8 (n, 1, h, w), "target", the images, and others of the source."""
        base = self.load_source(self.limit)
        train, test = (_make_pairs(split) for split in (base.train, base.test))
        return Dataset(self.name, train, test, base.class_names, base.warnings)


def _make_pairs(split: Split) -> Split:
    other_streams = {name: stream for name, stream in split.streams.items() if name != "image"}
    images = split.streams["image"]
    return Split({"input": transform_stream(images, sobel_edges), "target": images, **other_streams})


def sobel_edges(images: Tensor) -> Tensor:
    """Return the Sobel gradient magnitude of the channel mean: uint8 (n, channels, h, w) → uint8 (n, 1, h, w).

    255 is a vertical or horizontal step from black to white.
    """
    gray = F.pad(images.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor(SOBEL_KERNEL, dtype=gray.dtype) / SOBEL_STEP_RESPONSE
    slopes = F.conv2d(gray, torch.stack([kernel, kernel.T])[:, None])  # (n, 2, h, w)
    return slopes.norm(dim=1, keepdim=True).round().clamp(0, 255).to(torch.uint8)
