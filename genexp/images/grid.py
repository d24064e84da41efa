"""Arranging images in grids. (torchvision's make_grid would cost each start its import, over a second.)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GAP = 2  # pixels between images
BACKGROUND = 1.0


def tile(images: Tensor, columns: int) -> Tensor:
    """Return images (count, channels, height, width) as one picture, row by row, `columns` wide."""
    rows = -(-len(images) // columns)
    missing = rows * columns - len(images)
    images = F.pad(images.float(), (0, GAP, 0, GAP), value=BACKGROUND)
    blank = torch.full((missing, *images.shape[1:]), BACKGROUND, device=images.device)
    cells = torch.cat([images, blank]).unflatten(0, (rows, columns))  # (rows, columns, c, h, w)
    picture = cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # (c, rows·h, columns·w)
    return F.pad(picture, (GAP, 0, GAP, 0), value=BACKGROUND)


def rows(*batches: Tensor) -> Tensor:
    """Return a picture with one row for each batch of images (count, channels, height, width)."""
    return tile(torch.cat([batch.float() for batch in batches]), columns=len(batches[0]))
