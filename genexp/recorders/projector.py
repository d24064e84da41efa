"""Latent codes for TensorBoard's embedding projector, which reads TSV and image files beside the event files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from genexp.recorders.latent_plots import get_class_name
from genexp.recorders.pil_images import encode_png, to_pil_image
from genexp.run_dir.files import write_file
from genexp.snapshot import FinalArtifacts

MAX_PROJECTOR_SAMPLES = 2000
THUMBNAIL_PIXELS = 48  # side; all are in one square sprite image, for which TensorBoard allows 8192 × 8192 pixels
PROJECTOR_DIR = "projector"


def write_projector(log_dir: Path, artifacts: FinalArtifacts, class_names: Sequence[str]) -> None:
    """Write codes, class names and thumbnails of up to MAX_PROJECTOR_SAMPLES samples into `log_dir`/projector.

    A class name is one line: spaces replace tabs and line breaks.
    """
    assert artifacts.codes is not None
    projector_dir = log_dir / PROJECTOR_DIR
    projector_dir.mkdir(exist_ok=True)
    codes = io.BytesIO()
    np.savetxt(codes, artifacts.codes[:MAX_PROJECTOR_SAMPLES].numpy(), fmt="%.6g", delimiter="\t")
    write_file(projector_dir / "codes.tsv", codes.getvalue())
    projector_config = (
        f'embeddings {{\n  tensor_name: "latent codes"\n  tensor_path: "{PROJECTOR_DIR}/codes.tsv"\n'
    )
    if artifacts.labels is not None:
        names = [get_class_name(label, class_names) for label in artifacts.labels[:MAX_PROJECTOR_SAMPLES].tolist()]
        write_file(projector_dir / "classes.tsv", "".join(f"{' '.join(name.split())}\n" for name in names))
        projector_config += f'  metadata_path: "{PROJECTOR_DIR}/classes.tsv"\n'
    if artifacts.images is not None:
        _write_sprite(projector_dir / "thumbnails.png", artifacts.images[:MAX_PROJECTOR_SAMPLES])
        projector_config += f'  sprite {{\n    image_path: "{PROJECTOR_DIR}/thumbnails.png"\n'
        projector_config += (
            f"    single_image_dim: {THUMBNAIL_PIXELS}\n    single_image_dim: {THUMBNAIL_PIXELS}\n  }}\n"
        )
    write_file(log_dir / "projector_config.pbtxt", projector_config + "}\n")


def _write_sprite(path: Path, thumbnails: Tensor) -> None:
    from PIL import Image

    columns = math.ceil(math.sqrt(len(thumbnails)))
    sprite = Image.new("RGB", (columns * THUMBNAIL_PIXELS, columns * THUMBNAIL_PIXELS))
    for index, pixels in enumerate(thumbnails):
        row, column = divmod(index, columns)
        thumbnail = to_pil_image(pixels).resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)).convert("RGB")
        sprite.paste(thumbnail, (column * THUMBNAIL_PIXELS, row * THUMBNAIL_PIXELS))
    write_file(path, encode_png(sprite))
