"""Latent-space interpolation and traversal, and animations and filmstrips of the decoded images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genexp.images.grid import make_grid

WALK_FRAMES = 40  # frames of a walk shown as an animation


def interpolate_codes(codes: Tensor, num_frames: int) -> Tensor:
    """Return linear interpolations from each code to the next, and from the last to the first.

    (codes, features) → (frames, codes, features). The first frame is `codes` itself.
    """
    weights = torch.linspace(0, 1, num_frames).to(codes)[:, None, None]
    return torch.lerp(codes, codes.roll(-1, dims=0), weights)


def traverse_units(code: Tensor, units: Tensor, low: Tensor, high: Tensor, num_frames: int) -> Tensor:
    """Return paths that vary one latent unit each, from `low` to `high`. The rest of `code` is fixed.

    `code` is (features,). `units` (int64 indices), `low` and `high` are (units,).
    The result is (frames, units, features).
    """
    num_units = len(units)
    weights = torch.linspace(0, 1, num_frames).to(code)[:, None]
    codes = code.repeat(num_frames, num_units, 1)
    codes[:, torch.arange(num_units, device=units.device), units] = torch.lerp(low, high, weights)
    return codes


def slerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Return spherical interpolations from `start` to `end`, noise (count, latent) each, at `weight` in [0, 1].

    On a straight line the norm falls to values for which no generator was trained (White 2016).
    """
    cosine = torch.cosine_similarity(start, end, dim=1)[:, None].clamp(-0.9999, 0.9999)
    angle = cosine.acos()
    mixed = torch.sin((1 - weight) * angle) * start + torch.sin(weight * angle) * end
    return mixed / angle.sin()


def decode_frames(decode: Callable[[Tensor], Tensor], frame_codes: Tensor) -> Tensor:
    """Return the images (frames, codes, c, h, w) of a path (frames, codes, features), decoded frame by frame."""
    return torch.stack([decode(codes) for codes in frame_codes])


def make_animation(images: Tensor, columns: int = 4) -> Tensor:
    """Return frames (frames, c, height, width), each a grid of all paths, from images (frames, paths, c, h, w)."""
    return torch.stack([make_grid(frame, columns) for frame in images])


def make_filmstrip(images: Tensor, columns: int = 11) -> Tensor:
    """Return a grid with one row for each path, from images (frames, paths, c, h, w).

    A row shows at most `columns` evenly spaced frames of its path.
    """
    frame_indices = torch.linspace(0, len(images) - 1, min(columns, len(images))).round().long()
    return make_grid(images[frame_indices.to(images.device)].transpose(0, 1).flatten(0, 1), len(frame_indices))
