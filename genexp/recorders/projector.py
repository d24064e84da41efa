"""Latent codes for TensorBoard's projector, which reads plain files beside the events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from genexp.recorders.images import to_image
from genexp.snapshot import FinalArtifacts

SAMPLES = 2000
THUMBNAIL = 48  # pixels; all thumbnails lie in one square picture of at most 8192 pixels a side
FOLDER = "projector"


def write_projector(folder: Path, finale: FinalArtifacts, class_names: Sequence[str]) -> None:
    """Write codes, class names and thumbnails of up to 2000 samples into `folder`/projector."""
    assert finale.codes is not None
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    np.savetxt(target / "codes.tsv", finale.codes[:SAMPLES].numpy(), fmt="%.6g", delimiter="\t")
    settings = f'embeddings {{\n  tensor_name: "latent codes"\n  tensor_path: "{FOLDER}/codes.tsv"\n'
    if finale.labels is not None:
        names = [class_name(label, class_names) for label in finale.labels[:SAMPLES].tolist()]
        (target / "classes.tsv").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        settings += f'  metadata_path: "{FOLDER}/classes.tsv"\n'
    if finale.thumbnails is not None:
        _write_sprite(target / "thumbnails.png", finale.thumbnails[:SAMPLES])
        settings += f'  sprite {{\n    image_path: "{FOLDER}/thumbnails.png"\n'
        settings += f"    single_image_dim: {THUMBNAIL}\n    single_image_dim: {THUMBNAIL}\n  }}\n"
    (folder / "projector_config.pbtxt").write_text(settings + "}\n", encoding="utf-8")


def class_name(label: int, class_names: Sequence[str]) -> str:
    """Return the name of a class, which is its number where the data set has no names."""
    return class_names[label] if label < len(class_names) else str(label)


def _write_sprite(path: Path, thumbnails: Tensor) -> None:
    from PIL import Image

    columns = math.ceil(math.sqrt(len(thumbnails)))
    sprite = Image.new("RGB", (columns * THUMBNAIL, columns * THUMBNAIL))
    for place, pixels in enumerate(thumbnails):
        row, column = divmod(place, columns)
        thumbnail = to_image(pixels).resize((THUMBNAIL, THUMBNAIL)).convert("RGB")
        sprite.paste(thumbnail, (column * THUMBNAIL, row * THUMBNAIL))
    sprite.save(path)
