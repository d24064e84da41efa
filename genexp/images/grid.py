"""Image grids.

torchvision's `make_grid` is not used: its import takes 1.5 s (scripts/README.md, "Libraries").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING_PIXELS = 2  # between images and around the grid
PADDING_VALUE = 1.0  # white


def make_grid(images: Tensor, columns: int) -> Tensor:
    """Return a float grid (channels, grid height, grid width) of images (count, channels, height, width).

    The images fill the grid row by row, `columns` in each row. Unused cells are white.
    """
    rows = -(-len(images) // columns)
    num_blank = rows * columns - len(images)
    images = F.pad(images.float(), (0, PADDING_PIXELS, 0, PADDING_PIXELS), value=PADDING_VALUE)
    blank = torch.full((num_blank, *images.shape[1:]), PADDING_VALUE, device=images.device)
    cells = torch.cat([images, blank]).unflatten(0, (rows, columns))  # (rows, columns, c, h, w)
    grid = cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # (c, rows·h, columns·w)
    return F.pad(grid, (PADDING_PIXELS, 0, PADDING_PIXELS, 0), value=PADDING_VALUE)


def make_grid_from_rows(*rows: Tensor) -> Tensor:
    """Return a grid with one row for each batch of images (count, channels, height, width), in [0, 1]."""
    return make_grid(torch.cat([batch.float() for batch in rows]), columns=len(rows[0]))
