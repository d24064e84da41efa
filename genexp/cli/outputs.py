"""Image files written by `genexp-sample`: comparison grids, latent walks and single images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genexp.images.grid import PADDING_VALUE, make_grid
from genexp.images.latent_walks import make_animation, make_filmstrip
from genexp.recorders.pil_images import encode_png, enlarge_small_image, to_pil_image, write_animation
from genexp.run_dir.files import create_dir, write_file
from genexp.training.trainer import to_uint8

MAX_COMPARED_IMAGES, GRID_COLUMNS = 50, 10  # images of each batch in a comparison grid, and in each of its rows
FRAME_MILLISECONDS = 80  # display time of one GIF frame


def make_comparison_grid(*batches: Tensor) -> Tensor:
    """Return a grid `(channels, height, width)` of batches `(count, channels, height, width)`.

    Corresponding images of the batches are below each other, in the order of the batches. Grayscale images are
    expanded to RGB beside RGB images. At most `MAX_COMPARED_IMAGES` of each batch are shown.
    """
    channels = max(batch.shape[1] for batch in batches)
    blocks = []
    for parts in zip(*(batch[:MAX_COMPARED_IMAGES].float().split(GRID_COLUMNS) for batch in batches), strict=True):
        columns = min(GRID_COLUMNS, len(batches[0]))
        blocks += [_pad_with_blank_images(part.expand(-1, channels, -1, -1), columns) for part in parts]
    return make_grid(torch.cat(blocks), len(blocks[0]))


def _pad_with_blank_images(images: Tensor, count: int) -> Tensor:
    """Return `images` (batch, c, h, w), padded at the end with blank images to `count` images."""
    blank = images.new_full((count - len(images), *images.shape[1:]), PADDING_VALUE)
    return torch.cat([images, blank])


def write_latent_walk(output_dir: Path, name: str, images: Tensor) -> list[Path]:
    """Write images `(frames, paths, c, h, w)` as a PNG with one row per path, and as a GIF. Return both paths."""
    grid_path, gif_path = output_dir / f"{name}.png", output_dir / f"{name}.gif"
    write_enlarged_image(grid_path, make_filmstrip(images))
    frames = map(to_pil_image, to_uint8(make_animation(images)))
    write_animation(gif_path, map(enlarge_small_image, frames), FRAME_MILLISECONDS)
    return [grid_path, gif_path]


def write_enlarged_image(path: Path, image: Tensor) -> Path:
    """Write an image `(c, h, w)` in [0, 1] as PNG for viewing: a small image is enlarged. Return `path`."""
    create_dir(path.parent)
    write_file(path, encode_png(enlarge_small_image(to_pil_image(to_uint8(image)))))
    return path


def write_image(path: Path, image: Tensor) -> Path:
    """Write an image `(c, h, w)` in [0, 1] as PNG at its own size. Return `path`."""
    create_dir(path.parent)
    write_file(path, encode_png(to_pil_image(to_uint8(image))))
    return path
