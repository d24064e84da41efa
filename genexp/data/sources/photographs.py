"""Two photographs for style transfer: one for content, one for style."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genexp.config import require
from genexp.data.dataset import Dataset, Split
from genexp.data.registry import DatasetConfig, register_dataset
from genexp.data.sources._image_files import convert_to_8bit
from genexp.device import check_memory
from genexp.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_FILES = {"content": "china.jpg", "style": "flower.jpg"}  # sample images of scikit-learn


@register_dataset("photographs")
@dataclass
class PhotographsConfig(DatasetConfig):
    """conf/dataset/photographs.yaml."""

    content: str | None  # path of the photograph; None for scikit-learn's
    style: str | None
    size: int  # longer side, in pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 1, "size", self.size, "must be at least 1 pixel")

    def load(self) -> Dataset:
        """Return the streams "content" and "style": one sample each, uint8 (1, 3, height, width).

        Their sizes differ. The test split equals the training split. Raises DataError.
        """
        streams = {name: _load_photograph(name, getattr(self, name), self.size) for name in DEFAULT_FILES}
        return Dataset(self.name, Split(streams), Split(streams))


def _load_photograph(role: str, file: str | None, size: int) -> Tensor:
    import numpy as np
    from PIL import Image

    if file is None:
        from sklearn.datasets import load_sample_image

        image = Image.fromarray(load_sample_image(DEFAULT_FILES[role]))
    else:
        image = _read_image(Path(file).expanduser(), f"dataset.{role}={file}")
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    check_memory(3 * width * height, f"dataset.size={size}")
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].contiguous()


def _read_image(path: Path, setting: str) -> Image:
    """Return the image in RGB, without transparency and with its EXIF orientation applied. Raises DataError."""
    from PIL import Image, ImageOps

    if not path.is_file():
        raise DataError(f"{setting}: not a file. Use an image file, or null for scikit-learn's photograph.")
    try:
        with Image.open(path) as image:
            return convert_to_8bit(ImageOps.exif_transpose(image), "RGB")
    except Exception as error:  # Pillow's plugins raise any exception on damaged files
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{setting}: not readable as an image ({reason}). Use another file.") from None
