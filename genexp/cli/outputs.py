"""What the tools write for the eye: pictures of before and after, walks, single images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genexp.images.grid import PAD_VALUE, make_grid
from genexp.images.latent_walks import make_animation, make_filmstrip
from genexp.recorders.gif import write_gif
from genexp.recorders.images import encode_png, enlarge_small_image, to_pil_image
from genexp.training.trainer import to_uint8

MAX_COMPARED_IMAGES, GRID_COLUMNS = 50, 10  # images in a picture of before and after, and in a row of it
FRAME_MILLISECONDS = 80  # ms


def make_comparison_grid(*batches: Tensor) -> Tensor:
    """Return a picture of batches (count, c, h, w), image i of each below that of the one before."""
    channels = max(batch.shape[1] for batch in batches)
    blocks = []
    for parts in zip(*(batch[:MAX_COMPARED_IMAGES].float().split(GRID_COLUMNS) for batch in batches), strict=True):
        columns = min(GRID_COLUMNS, len(batches[0]))
        blocks += [_pad_with_blank_images(part.expand(-1, channels, -1, -1), columns) for part in parts]
    return make_grid(torch.cat(blocks), len(blocks[0]))


def _pad_with_blank_images(images: Tensor, count: int) -> Tensor:
    """Return `images` with as many blank ones behind them as make `count`."""
    blank = images.new_full((count - len(images), *images.shape[1:]), PAD_VALUE)
    return torch.cat([images, blank])


def write_latent_walk(output_dir: Path, name: str, images: Tensor) -> list[Path]:
    """Write images (frames, paths, c, h, w) as a picture with a path a row, and as an animation."""
    grid_path, gif_path = output_dir / f"{name}.png", output_dir / f"{name}.gif"
    write_enlarged_image(grid_path, make_filmstrip(images))
    write_gif(gif_path, to_uint8(make_animation(images)), FRAME_MILLISECONDS)
    return [grid_path, gif_path]


def write_enlarged_image(path: Path, image: Tensor) -> Path:
    """Write a picture that is to be looked at: a small one enlarged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(enlarge_small_image(to_pil_image(to_uint8(image)))))
    return path


def write_image(path: Path, image: Tensor) -> Path:
    """Write an image (c, h, w) pixel for pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(to_pil_image(to_uint8(image))))
    return path
