"""Walks through a latent space: from one code to the next, or along one unit; and pictures of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genexp.images.grid import make_grid

WALK_FRAMES = 40  # of a walk that is to be watched


def interpolate_codes(codes: Tensor, frames: int) -> Tensor:
    """Return the straight ways from each code to the next, and from the last to the first.

    (codes, features) → (frames, codes, features); the first frame is `codes` itself.
    """
    weights = torch.linspace(0, 1, frames).to(codes)[:, None, None]
    return torch.lerp(codes, codes.roll(-1, dims=0), weights)


def traverse_units(code: Tensor, units: Tensor, low: Tensor, high: Tensor, frames: int) -> Tensor:
    """Return the ways on which each of `units` alone moves from its `low` to its `high`; the rest of `code` stays.

    `code` is (features,), the others (units,) each → (frames, units, features).
    """
    num_units = len(units)
    weights = torch.linspace(0, 1, frames).to(code)[:, None]
    path = code.repeat(frames, num_units, 1)
    path[:, torch.arange(num_units, device=units.device), units] = torch.lerp(low, high, weights)
    return path


def decode_frames(decode: Callable[[Tensor], Tensor], path: Tensor) -> Tensor:
    """Return the images (frames, codes, c, h, w) of a path (frames, codes, features), a frame at a time."""
    return torch.stack([decode(codes) for codes in path])


def make_animation(images: Tensor, columns: int = 4) -> Tensor:
    """Return images (frames, paths, c, h, w) as frames (frames, c, height, width) with all paths in each."""
    return torch.stack([make_grid(frame, columns) for frame in images])


def make_filmstrip(images: Tensor, columns: int = 11) -> Tensor:
    """Return images (frames, paths, c, h, w) as one picture: a path a row, `columns` of its frames along it."""
    frame_indices = torch.linspace(0, len(images) - 1, min(columns, len(images))).round().long()
    return make_grid(images[frame_indices.to(images.device)].transpose(0, 1).flatten(0, 1), len(frame_indices))
